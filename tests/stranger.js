// Another program, in another language, that knows nothing of this one but two columns of kv.
//
//   node stranger.js DSN upsert KEY JSON    write as any program does
//   node stranger.js DSN read KEY           print the value as the database prints it
//   node stranger.js DSN follow KEY         print it now and after each notification
const { Client } = require("pg");

const UPSERT =
  "INSERT INTO kv (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = $2";
const READ = "SELECT value::text AS text FROM kv WHERE key = $1";

async function main([host, port, database, user], verb, key, value) {
  const client = new Client({ host, port: Number(port), database, user });
  await client.connect();
  const print = async () => {
    const { rows } = await client.query(READ, [key]);
    console.log(rows.length ? rows[0].text : "missing");
  };
  if (verb === "upsert") {
    await client.query(UPSERT, [key, value]);
  } else if (verb === "read") {
    await print();
  } else {
    client.on("notification", (hint) => hint.payload === key && print());
    await client.query("LISTEN assistant_kv");
    await print();
    return;
  }
  await client.end();
}

const [server, ...rest] = process.argv.slice(2);
main(server.split(","), ...rest);
