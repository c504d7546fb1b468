"""All that is kept, in Postgres. The only package that speaks SQL."""
