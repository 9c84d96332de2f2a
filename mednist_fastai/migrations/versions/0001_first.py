"The first schema. No migration goes back: import the export that was made before the upgrade"
import sqlalchemy as sa
from alembic import op

revision,down_revision = '0001',None

# written out, not taken from the package: a migration must do in years what it does today
EXACT = dict(mysql_charset='utf8mb4', mysql_collate='utf8mb4_bin', mariadb_charset='utf8mb4', mariadb_collate='utf8mb4_bin', mysql_engine='InnoDB', mariadb_engine='InnoDB')
BLOB = sa.LargeBinary(2**24-1)

def column(name, kind, **kw): return sa.Column(name, kind, nullable=kw.pop('nullable', False), **kw)
def key(table): return sa.PrimaryKeyConstraint('id', name=f'pk_{table}')
def refers(table, to): return sa.ForeignKeyConstraint([f'{to[:-1]}_id'], [f'{to}.id'], name=f'fk_{table}_{to[:-1]}_id')
def unique(table, *columns): return sa.UniqueConstraint(*columns, name=f'uq_{table}_{columns[0]}')

def table(name, *parts, indexes=()):
    op.create_table(name, column('id', sa.Integer), *parts, key(name), **EXACT)
    for c in indexes: op.create_index(f'ix_{name}_{c}', name, [c])

def upgrade():
    number,time = lambda c: column(c, sa.Integer),column('time', sa.BigInteger)
    table('users', column('name', sa.String(190)), column('role', sa.String(16)), column('active', sa.Boolean), time.copy(), unique('users', 'name'), indexes=['time'])
    table('datasets', column('name', sa.String(190)), time.copy(), unique('datasets', 'name'), indexes=['time'])
    table('images', column('digest', sa.String(64)), column('source', sa.String(64)), column('name', sa.String(64)), column('kind', sa.String(8)), number('width'), number('height'),
        column('size', sa.BigInteger), column('path', sa.String(190)), time.copy(), unique('images', 'digest'), indexes=['source','time'])
    table('members', number('image_id'), number('dataset_id'), refers('members', 'images'), refers('members', 'datasets'), unique('members', 'image_id', 'dataset_id'), indexes=['image_id','dataset_id'])
    table('predictions', number('image_id'), column('learner', sa.String(64)), column('labels', sa.Text), column('probabilities', BLOB), column('label', sa.String(1000)),
        column('confidence', sa.Double), column('stranger', sa.Double, nullable=True), time.copy(), refers('predictions', 'images'), indexes=['image_id','learner','time'])
    table('labels', number('image_id'), number('version'), number('user_id'), column('label', sa.String(1000)), column('status', sa.String(16)), time.copy(),
        refers('labels', 'images'), refers('labels', 'users'), unique('labels', 'image_id', 'version'), indexes=['image_id','user_id','time'])
    table('comments', number('image_id'), number('user_id'), column('text', sa.Text), time.copy(), refers('comments', 'images'), refers('comments', 'users'), indexes=['image_id','user_id','time'])
    table('vectors', number('image_id'), column('learner', sa.String(64)), column('data', BLOB), refers('vectors', 'images'), unique('vectors', 'image_id', 'learner'), indexes=['image_id'])
    table('tombstones', column('name', sa.String(64)), number('user_id'), time.copy(), refers('tombstones', 'users'), indexes=['user_id','time'])
    table('audits', time.copy(), column('by', sa.String(190)), column('action', sa.String(32)), column('target', sa.String(190)), column('detail', sa.Text), indexes=['time','action'])
