"What Alembic runs: the migrations, on the engine that `store` hands over"
from alembic import context
from mednist_fastai.store import metadata

engine = context.config.attributes['engine']
with engine.connect() as con:
    # SQLite can't change a column in place, so there a table is made anew ("batch")
    context.configure(connection=con, target_metadata=metadata, render_as_batch=engine.dialect.name=='sqlite')
    with context.begin_transaction(): context.run_migrations()
    con.commit()
