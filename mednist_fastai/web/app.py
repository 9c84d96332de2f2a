"The application: what every page has in common"
import hashlib, hmac, logging, re, secrets, threading, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from babel.numbers import get_decimal_symbol
from flask import Flask, current_app, g, jsonify, render_template, request, session, url_for
from flask_babel import Babel, format_decimal, get_locale, gettext as _
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import current_user
from flask_wtf.csrf import CSRFProtect
from werkzeug.exceptions import HTTPException, SecurityError
from werkzeug.middleware.proxy_fix import ProxyFix
from . import words
from .accounts import end_seats, login
from .box import Box, EarlierLearnerError, FullError, GoneError, LimitError
from .metrics import Metrics
from .pictures import Cams
from .runs import Runs
from .settings import Settings, is_local, server_secret
from ..learner import percent

LANGUAGES = dict(en='English', fr='Français')
log = logging.getLogger('mednist_fastai.web')

@dataclass
class State:
    "What the requests of one application share"
    settings: Settings; secret: str; runs: Runs; cams: Cams; metrics: Metrics
    store: object=None; index: object=None; retraining: object=None
    turns: object=None # how many programs may wait for an answer at once: pages must get through, too
    keeping: object=field(default_factory=threading.Lock)
    keeper: object=field(default_factory=lambda: ThreadPoolExecutor(1, 'keep'))
    ended: object=field(default_factory=threading.Event)
    def close(self):
        "Stop the threads; sessions stay and go on with the next start"
        self.ended.set()
        if self.retraining: self.retraining.close()
        self.keeper.shutdown(wait=True, cancel_futures=True)
        self.cams.close()
        self.runs.close()
        if self.store: self.store.close()

csrf = CSRFProtect()

def _key():
    "Whom a rate is counted for: the user or the session where there is a real one, so that a ward behind one address isn't one person; else the address"
    if current_user.is_authenticated: return f'user {current_user.name}'
    return f'session {g.box.sid}' if getattr(g, 'box', None) else get_remote_address()

limiter = Limiter(_key, storage_uri='memory://', default_limits=[lambda: _state().settings.limits], headers_enabled=True)

def _state(): return current_app.extensions['mednist']

def own_path(to):
    "Where to go on: only a path of this page. //elsewhere and /\\elsewhere are other hosts, and browsers drop tabs and line ends"
    return to if re.fullmatch(r'/(?!/)[^\\\x00-\x1f\x7f]*', to) else url_for('sort.index')

def choose_language():
    "The switch, else the browser's wish"
    if (l := session.get('language')) in LANGUAGES: return l
    return request.accept_languages.best_match([*LANGUAGES], 'en')

CSP = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

def _headers(r):
    r.headers.update({'Content-Security-Policy':CSP, 'X-Content-Type-Options':'nosniff', 'X-Frame-Options':'DENY', 'Referrer-Policy':'same-origin',
        'Cross-Origin-Opener-Policy':'same-origin', 'Cross-Origin-Resource-Policy':'same-origin', 'Permissions-Policy':'camera=(), microphone=(), geolocation=()'})
    if request.is_secure: r.headers['Strict-Transport-Security'] = 'max-age=31536000'
    if request.endpoint!='static': r.headers['Cache-Control'] = 'no-store'
    return r

def _open_store(s):
    if s.store is None: return
    from ..store import Store
    return Store(s.store)

def _open_index(s, runs):
    "By the learner in use, or where the home went on since the index was made, by the version that made it"
    if s.index is None: return
    from ..search import OtherLearnerError, SearchIndex, _read_config
    try: return SearchIndex(s.index, runs.learner)
    except OtherLearnerError:
        if (lf := runs.learner_of(_read_config(Path(s.index))['learner']['digest'])) is None: raise
        return SearchIndex(s.index, lf)

def make_app(settings=None):
    "See `mednist_fastai.web.create_app`"
    s = settings or Settings()
    Path(s.data).mkdir(parents=True, exist_ok=True, mode=0o700)
    secret,local = server_secret(s),is_local(s.host)
    app = Flask('mednist_fastai.web')
    app.config.update(SECRET_KEY=hmac.new(secret.encode(), b'cookies', hashlib.sha256).hexdigest(), MAX_CONTENT_LENGTH=s.max_request, MAX_FORM_PARTS=2*s.max_files+50,
        MAX_FORM_MEMORY_SIZE=4*2**20, SESSION_COOKIE_NAME='mednist', SESSION_COOKIE_HTTPONLY=True, SESSION_COOKIE_SAMESITE='Lax', SESSION_COOKIE_SECURE=not local if s.https is None else s.https,
        WTF_CSRF_TIME_LIMIT=None, BABEL_DEFAULT_LOCALE='en', TRUSTED_HOSTS=[*s.names] or (['localhost','127.0.0.1','::1','[::1]',s.host] if local else None))
    if s.proxies: app.wsgi_app = ProxyFix(app.wsgi_app, x_for=s.proxies, x_proto=s.proxies, x_host=s.proxies)
    runs = Runs(s)
    try: store,index = _open_store(s),_open_index(s, runs)
    except BaseException: runs.close(); raise
    st = app.extensions['mednist'] = State(s, secret, runs, Cams(), Metrics(), store, index)
    st.turns = threading.BoundedSemaphore(max(1, s.threads//2))
    st.metrics.watch(st)
    app.before_request(_begin) # before rates are counted: they are of a session
    csrf.init_app(app); limiter.init_app(app); login.init_app(app)
    login.login_view,login.login_message = 'accounts.sign_in',None
    Babel(app, locale_selector=choose_language)
    app.after_request(_headers)
    st.metrics.attach(app)
    _errors(app)
    _words(app)
    _blueprints(app, st)
    threading.Thread(target=_sweep, args=(st,), name='sweep', daemon=True).start()
    return app

def _sweep(st):
    while not st.ended.wait(600):
        try: st.runs.sweep(); end_seats(st.settings)
        except Exception: log.exception('old sessions could not be removed; it is tried again in ten minutes')

def _blueprints(app, st):
    from .pages import accounts, admin, api, health, look, review, sort
    for o in (sort,look,health,api): app.register_blueprint(o.bp)
    csrf.exempt(api.bp) # a token in a header, which no other site's form can send
    if st.store is not None:
        from .retraining import Retrainings
        st.retraining = Retrainings(st)
        for o in (accounts,review,admin): app.register_blueprint(o.bp)

def _begin():
    "The box of this session, if it has one"
    g.box = None
    if request.endpoint in (None,'static') or request.endpoint.startswith(('health.','api.')): return
    box = Box.open(_state().settings, session.get('sid'))
    if not box: return
    try:
        # once somebody has signed in with it, it is theirs: neither the next person at this screen nor a copy of the cookie sees it
        if (owner := box.note('owner')) and not (current_user.is_authenticated and current_user.name==owner): return
        box.touch()
    except (GoneError,FileNotFoundError): return # cleared a moment ago
    g.box = box

# What goes wrong

_HELP = {400:words.N_('The request makes no sense to the server. Go back, reload the page and try again.'), 403:words.N_('You may not do this. Sign in as somebody who may.'),
    404:words.N_('There is nothing at this address. It may be of a session that was cleared.'), 405:words.N_('That can\'t be done here.'),
    409:words.N_('Somebody else was faster. Look again.'), 410:words.N_('This session was cleared, or nobody used it for too long. Start a new one.'),
    413:words.N_('That is more than the server takes at once. Choose fewer or smaller files.'), 429:words.N_('Too many requests. Wait a minute and go on.'),
    503:words.N_('The server is busy. Try again in a moment.'), 507:words.N_('The disk of the server is nearly full. Ask whoever runs it to make room.'),
    500:words.N_('Something went wrong in the server. Nothing you uploaded is lost; the mark below helps whoever runs it to find the cause.')}

def fail(code, text, mark=''):
    "An error as a page, a fragment or JSON, whatever was asked for"
    if request.path.startswith('/api/'): return jsonify(error=text or _HELP.get(code, ''), **(dict(mark=mark) if mark else {})),code
    page = '_error.html' if request.headers.get('HX-Request') else 'error.html'
    return render_template(page, code=code, text=text or _(_HELP.get(code, _HELP[500])), mark=mark),code

def _errors(app):
    from flask_wtf.csrf import CSRFError
    from sqlalchemy.exc import SQLAlchemyError
    from ..store import ConflictError, NotAllowedError, StoreError, UnknownError
    codes = [(ConflictError,409),(NotAllowedError,403),(UnknownError,404),(StoreError,400)]
    @app.errorhandler(CSRFError)
    def _csrf(e): return fail(400, _('The form is too old or not of this page. Reload the page and try again.'))
    @app.errorhandler(LimitError)
    def _limit(e): return fail(413, _(str(e))+' '+_('Nothing of this upload was kept.'))
    @app.errorhandler(EarlierLearnerError)
    def _earlier(e): return fail(409, _('These files were not taken in: the session was sorted by an earlier learner, %(name)s. Sort all of it again, or take its result home and clear it; then send them once more.', name=_named(e.args[0])))
    @app.errorhandler(FullError)
    def _full(e): return fail(507, '')
    @app.errorhandler(GoneError)
    def _gone(e): return fail(410, '')
    @app.errorhandler(StoreError)
    def _store(e): return fail(next(c for k,c in codes if isinstance(e, k)), _(str(e)))
    @app.errorhandler(SecurityError) # called by a name that is not ours: no page, since no address of one could be told
    def _name(e): return 'This server is not known by that name; see --names\n',400,{'Content-Type':'text/plain'}
    @app.errorhandler(HTTPException)
    def _http(e):
        r = app.make_response(fail(e.code or 500, '' if e.code in _HELP else e.description))
        for k,v in e.get_headers() if e.code in (405,429) else (): # which methods there are, when to try again
            if k in ('Allow','Retry-After'): r.headers[k] = v
        return r
    @app.errorhandler(Exception)
    def _any(e):
        mark = secrets.token_hex(4)
        log.error('error %s at %s', mark, request.endpoint, exc_info=e)
        return fail(500, '', mark)

def _named(by):
    "Name and digest of a learner: a retrained one may have the name of that before"
    return f'{by.name if hasattr(by, "name") else by.info.get("name", by.path.name)} ({by.digest[:12]})'

def _words(app):
    st = app.extensions['mednist']
    app.jinja_env.filters.update(named=_named, moment=lambda t: time.strftime('%Y-%m-%d %H:%M', time.gmtime(t)), percent=lambda x: '' if x is None else percent(x).replace('.', get_decimal_symbol(get_locale())), decimal=format_decimal, reason=lambda t: words.reason(t, _), doubt=lambda o: _(words.DOUBTS.get(o, o)),
        status=lambda o: _(words.STATUS.get(o, o)), said=lambda o: _(words.SAID.get(o, o)), role=lambda o: _(words.ROLE.get(o, o)))
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    @app.context_processor
    def _shared():
        lf = st.runs.learner
        return dict(languages=LANGUAGES, language=str(get_locale() or 'en'), learner=lf, multi=lf.task=='multi_label', has_store=st.store is not None, settings=st.settings, user=current_user)
