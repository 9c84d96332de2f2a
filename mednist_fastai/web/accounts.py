"Who is who: passwords by argon2, sign-in by flask-login, tokens of the API by itsdangerous; users and their roles are those of the store"
import hashlib, re, secrets, threading, time
from contextlib import suppress
from functools import wraps
from pathlib import Path
import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from flask import abort, current_app, session
from flask_login import LoginManager, UserMixin, current_user
from itsdangerous import BadData, URLSafeTimedSerializer
from .words import N_
from ..store import ROLES, Store, StoreError, UnknownError, _trail, users

hasher = PasswordHasher()
_nobody = hasher.hash('a password that nobody has') # an unknown name takes as long as a wrong password
_two = threading.Semaphore(2) # each hash takes 64 MiB by design

login = LoginManager()

def _mark(row):
    "Changes with the password, so that old cookies and tokens end with it"
    return hashlib.sha256((row.password_hash or '').encode()).hexdigest()[:16]

class User(UserMixin):
    "A user of the store"
    def __init__(self, row): self.name,self.role,self.mark = row.name,row.role,_mark(row)
    def get_id(self): return f'{self.mark}:{self.name}'
    def may(self, role): return ROLES.index(self.role)>=ROLES.index(role)

def _row(store, name):
    with store.read() as con: return con.execute(sa.select(users).where(users.c.name==name, users.c.active)).first()

def store_of(app)->Store: return app.extensions['mednist'].store

# A sign-in is a file: when it is gone, every copy of its cookie has ended

def _seats(settings):
    at = Path(settings.data)/'seats'
    at.mkdir(exist_ok=True)
    return at

def take_seat(settings):
    session['seat'] = secrets.token_hex(16)
    (_seats(settings)/session['seat']).touch()

def leave_seat(settings):
    if re.fullmatch('[0-9a-f]{32}', seat := session.pop('seat', '')): (_seats(settings)/seat).unlink(missing_ok=True)

def end_seats(settings):
    "Those that nobody used for `settings.hours`"
    for o in _seats(settings).iterdir():
        with suppress(FileNotFoundError):
            if time.time()-o.stat().st_mtime>settings.hours*3600: o.unlink()

def _seated(settings):
    seat = session.get('seat', '')
    at = _seats(settings)/seat
    if not re.fullmatch('[0-9a-f]{32}', seat) or not at.is_file(): return False
    at.touch()
    return True

@login.user_loader
def load_user(id):
    store = store_of(current_app)
    mark,_,name = id.partition(':')
    if store and _seated(current_app.extensions['mednist'].settings) and (r := _row(store, name)) and r.password_hash and _mark(r)==mark: return User(r)

def check_password(store, name, password):
    "The user with this password, or None"
    r = _row(store, name) if 0<len(name)<=190 else None
    with _two:
        try: hasher.verify(r.password_hash if r and r.password_hash else _nobody, password[:1024])
        except (VerificationError,InvalidHashError): return None
    return User(r) if r and r.password_hash else None

def set_password(store, name:str, password:str, by:str):
    "Give a user a password: one's own, or as an admin anybody's; raises `StoreError`"
    if not 10<=len(password)<=1024: raise StoreError(N_('A password has 10 to 1,024 characters.'))
    if len(set(password))<5 or name.casefold() in password.casefold(): raise StoreError(N_('This password is too easy to guess: no repetition, and not the name in it.'))
    with _two: h = hasher.hash(password)
    with store.write(by, 'reader' if name==by else 'admin') as (con,_):
        if not con.execute(users.update().where(users.c.name==name, users.c.active).values(password_hash=h)).rowcount: raise UnknownError(f'{name} is no user of this store')
        _trail(con, by, 'set password', name)

def needs(role):
    "For signed-in users with at least this role; others are asked to sign in, or told that they may not"
    def wrap(f):
        @wraps(f)
        def _f(*args, **kw):
            if store_of(current_app) is None: abort(404)
            if not current_user.is_authenticated: return login.unauthorized()
            if not current_user.may(role): abort(403)
            return f(*args, **kw)
        return _f
    return wrap

def _signer(secret): return URLSafeTimedSerializer(secret, salt='mednist api token')

def make_token(secret, store, name:str)->str:
    "A token of the API for a user; it ends with the user's password, or after `Settings.token_days`"
    if store is None: return _signer(secret).dumps([name, ''])
    if (r := _row(store, name)) is None: raise UnknownError(f'{name} is no user of this store')
    return _signer(secret).dumps([name, _mark(r)])

def token_user(secret, store, token:str, days:float):
    "The user of a token, a name where there is no store, or None"
    try: name,mark = _signer(secret).loads(token, max_age=days*86400)
    except (BadData,ValueError,TypeError): return None
    if store is None: return name
    r = _row(store, name)
    return User(r) if r and _mark(r)==mark else None
