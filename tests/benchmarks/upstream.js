// The board of the upstream system: an object in memory, all of which is written with each update,
// by one upsert of its pool of connections. Nothing else is kept, and nobody is told.
//
//   node upstream.js HOST,PORT,DATABASE,USER UPDATERS SECONDS
//
// prints the updates a second, and the median milliseconds of one.
const { Pool } = require("pg");

const UPSERT =
  "INSERT INTO kv (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = $2";

async function main(server, updaters, seconds) {
  const [host, port, database, user] = server.split(",");
  const pool = new Pool({ host, port: Number(port), database, user });
  const board = {};
  const update = async (agent, entry) => {
    board[agent] = entry;
    await pool.query(UPSERT, ["status_board", JSON.stringify(board)]);
  };
  const times = [];
  const repeat = async (agent, deadline) => {
    for (let number = 0; performance.now() < deadline; number++) {
      const start = performance.now();
      await update(agent, { status: "running", detail: `step ${number}` });
      times.push(performance.now() - start);
    }
  };
  const agents = Array.from({ length: updaters }, (_, task) => `agent-${task}`);
  await Promise.all(agents.map((agent) => update(agent, { status: "idle", detail: null })));
  const start = performance.now();
  await Promise.all(agents.map((agent) => repeat(agent, start + seconds * 1000)));
  const rate = (times.length * 1000) / (performance.now() - start);
  times.sort((a, b) => a - b);
  console.log(rate, times[times.length >> 1]);
  await pool.end();
}

main(process.argv[2], Number(process.argv[3]), Number(process.argv[4]));
