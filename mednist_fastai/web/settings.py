"What a server is told when it starts, and what it refuses to start with"
import ipaddress, os, secrets
from dataclasses import dataclass
from pathlib import Path
from ..cli import ArgumentError

SECRET_ENV,PASSWORD_ENV = 'MEDNIST_FASTAI_WEB_SECRET','MEDNIST_FASTAI_WEB_PASSWORD'

class WebError(ArgumentError): "The server can't start like this; the message says what to do"

@dataclass
class Settings:
    "Everything that may be set; what is left out is for one machine and its user"
    data: str|Path='web-data' # folder of the server: uploads, and the secret of a server on localhost
    learner: object=None # learner folder or home of learners; the learner in the package where None
    store: str|Path|None=None # folder of a store: with it people sign in, review and comment
    index: str|Path|None=None # folder of a search index made by the same learner: with it similar images are shown
    home: str|Path|None=None # home of learners that an admin may retrain, promote and roll back
    host: str='127.0.0.1' # address to listen at
    port: int=8000
    names: tuple=() # host names under which the server may be called; any where empty and not on localhost
    secret: str|None=None # what signs cookies and tokens; from the environment where None
    https: bool|None=None # is the page reached by https only? None: yes unless on localhost
    proxies: int=0 # reverse proxies in front, whose X-Forwarded-For is believed
    threads: int=8 # requests at once
    runs: int=4 # sessions that are sorted at once; the others wait
    max_request: int=256*2**20 # bytes of one upload
    max_files: int=5000 # of a session
    max_bytes: int=4*2**30 # of a session, and of a ZIP when unpacked
    max_ratio: int=200 # to which a file in a ZIP may grow
    spare: int=2**30 # bytes that stay free on the disk of `data`
    hours: float=24 # a session that nobody used for so long is removed
    token_days: float=90 # until a token of the API ends
    limits: str='1200/minute' # requests of a session, or of an address that has none
    sign_in_limit: str='10/minute'
    device: str|None=None # see `Predictor`

def is_local(host:str)->bool:
    "Does an address belong to this machine alone?"
    if host=='localhost': return True
    try: return ipaddress.ip_address(host).is_loopback
    except ValueError: return False

def server_secret(s:Settings)->str:
    "What signs cookies and tokens: from the settings, the environment, or on localhost a file that only its owner reads; raises `WebError`"
    given = s.secret or os.environ.get(SECRET_ENV)
    if given:
        if len(given)<32 or len(set(given))<8: raise WebError(f'{SECRET_ENV} is too easy to guess; make one: python -c "import secrets; print(secrets.token_hex(32))"')
        return given
    if not is_local(s.host): raise WebError(f'{s.host} can be reached from other machines: give a secret of your own as {SECRET_ENV}, at least 32 characters: python -c "import secrets; print(secrets.token_hex(32))"')
    at = Path(s.data)/'secret'
    if not at.exists():
        fd = os.open(new := at.with_name(f'secret.{os.getpid()}'), os.O_WRONLY|os.O_CREAT|os.O_EXCL, 0o600)
        with open(fd, 'w') as f: f.write(secrets.token_hex(32))
        try: os.link(new, at) # of two servers that start at once, one is the first
        except FileExistsError: pass
        new.unlink()
    return at.read_text().strip()
