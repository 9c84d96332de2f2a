"Images say whether text seems to be burned in (not known of those that are there), users may have a password for the page"
import sqlalchemy as sa
from alembic import op

revision,down_revision = '0002','0001'

def upgrade():
    op.add_column('images', sa.Column('burned_in', sa.Boolean, nullable=True))
    op.add_column('users', sa.Column('password_hash', sa.String(255), nullable=True))
