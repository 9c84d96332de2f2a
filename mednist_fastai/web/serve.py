"The command `mednist-web`"
import getpass, logging, os, signal, sys
from fastcore.script import call_parse
from ..cli import one_line_errors
from . import create_app
from .settings import PASSWORD_ENV, Settings, WebError, server_secret

def make_server(app, settings):
    "A waitress server that listens already; `run()` serves until `close()`"
    from waitress import create_server
    # a body is on the disk before a thread is given to it: a slow upload holds none
    return create_server(app, host=settings.host, port=settings.port, threads=settings.threads, max_request_body_size=settings.max_request+2**20, inbuf_overflow=2**19,
        outbuf_overflow=2**20, channel_timeout=120, connection_limit=500, ident=None,
        clear_untrusted_proxy_headers=not settings.proxies) # werkzeug's ProxyFix reads them, and as many as were said

def _password(s, name):
    from ..store import Store, users
    from .accounts import set_password
    import sqlalchemy as sa
    if s.store is None: raise WebError('--password needs --store: passwords are kept there')
    new = os.environ.get(PASSWORD_ENV) or getpass.getpass(f'New password for {name}: ')
    if not os.environ.get(PASSWORD_ENV) and getpass.getpass('Once more: ')!=new: raise WebError('the two passwords are not the same; nothing was changed')
    with Store(s.store) as store: set_password(store, name, new, name)
    print(f'{name} may sign in now')

def _token(s, name):
    from ..store import Store
    from .accounts import make_token
    os.makedirs(s.data, mode=0o700, exist_ok=True)
    secret = server_secret(s)
    if s.store is None: print(make_token(secret, None, name)); return
    with Store(s.store) as store: print(make_token(secret, store, name))

@call_parse
@one_line_errors
def mednist_web(
    data:str='web-data', # Folder of the server: what people upload, until they clear it or stay away
    learner:str=None, # Learner folder or home of learners; the one in the package where it is left out
    store:str=None, # Folder of a store: people sign in, review, comment
    index:str=None, # Folder of a search index made by the same learner: similar images are shown
    home:str=None, # Home of learners that an admin may retrain; also the --learner where that is left out
    host:str='127.0.0.1', # Address to listen at; any but this machine's own needs a secret in MEDNIST_FASTAI_WEB_SECRET
    port:int=8000, # Port
    names:str='', # Host names under which the page may be called, with commas
    proxies:int=0, # Reverse proxies in front whose X-Forwarded headers are believed
    threads:int=8, # Requests at once
    runs:int=4, # Sessions that are sorted at once
    max_mb:int=256, # Largest upload
    max_files:int=5000, # Files of a session
    hours:float=24, # A session that nobody used for so long is removed
    http:bool=False, # Not on localhost: is the page reached without https? Cookies then go over the net in the clear
    password:str='', # Only set the password of this user of the store; asked for, or from MEDNIST_FASTAI_WEB_PASSWORD
    token:str='', # Only print a token of the API for this user
):
    "Serve a page on which people drop images, see where they went, and correct them"
    s = Settings(data=data, learner=learner or home, store=store, index=index, home=home, host=host, port=port, names=tuple(o for o in names.split(',') if o), https=False if http else None,
        proxies=proxies, threads=threads, runs=runs, max_request=max_mb*2**20, max_files=max_files, hours=hours)
    if password: return _password(s, password)
    if token: return _token(s, token)
    logging.basicConfig(format='%(asctime)s %(levelname)s %(message)s', level=logging.INFO, stream=sys.stderr)
    logging.getLogger('alembic').setLevel(logging.WARNING)
    app = create_app(s)
    server = make_server(app, s)
    def stop(*_): raise SystemExit # a service is stopped by SIGTERM as somebody at a keyboard stops it by Ctrl-C
    signal.signal(signal.SIGTERM, stop)
    print(f'Serving on http://{"["+host+"]" if ":" in host else host}:{server.effective_port}/ (Ctrl-C stops it)', flush=True)
    if app.config['SESSION_COOKIE_SECURE']: print('Cookies go over https only: put a reverse proxy with a certificate in front, with --proxies 1; or say --http', flush=True)
    try: server.run()
    except KeyboardInterrupt: pass
    finally:
        server.close()
        app.extensions['mednist'].close()
