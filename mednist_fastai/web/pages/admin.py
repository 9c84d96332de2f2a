"Users, learners, retraining"
from pathlib import Path
import sqlalchemy as sa
from flask import Blueprint, abort, make_response, redirect, render_template, request, url_for
from flask_babel import gettext as _
from flask_login import current_user
from ..accounts import needs, set_password
from ..app import _state
from ..words import N_
from ...store import ROLES, StoreError, audits, users

bp = Blueprint('admin', __name__, url_prefix='/admin')
VERDICTS = dict(running=N_('running'), promoted=N_('promoted: the new learner is in use'), refused=N_('refused: the new learner is worse, the old one stays in use'), failed=N_('failed: the old learner stays in use'), done=N_('done'))

def _page(error='', done='', code=200):
    st = _state()
    who = list(st.store.frame(sa.select(users.c.name, users.c.role, users.c.active, users.c.password_hash).order_by(users.c.name)).itertuples())
    trail = list(st.store.frame(sa.select(audits.c.time, audits.c.by, audits.c.action, audits.c.target).order_by(audits.c.id.desc()).limit(30)).itertuples())
    card = Path(st.runs.learner.path)/'README.md'
    text,verdict = st.retraining.last()
    return render_template('admin.html', who=who, roles=ROLES, trail=trail, card=card.read_text(encoding='utf-8') if card.is_file() else '', home=st.settings.home, text=text, verdict=verdict and VERDICTS[verdict],
        running=st.retraining.running(), refused=st.retraining.refused(), steps=st.retraining.history(), error=error, done=done),code

@bp.get('/')
@needs('admin')
def index(): return _page()

@bp.post('/user')
@needs('admin')
def user():
    "Add somebody, or change a role"
    st,f = _state(),request.form
    name,role,password = f.get('name', ''),f.get('role', ''),f.get('password', '')
    try:
        if name==current_user.name and role!=current_user.role: raise StoreError(_('You can\'t change your own role.')) # or the last admin would be gone
        have = any(o.name==name and o.active and o.role==role for o in st.store.frame(sa.select(users)).itertuples())
        if not have: st.store.add_user(name, role, current_user.name)
        if password: set_password(st.store, name, password, current_user.name)
    except StoreError as e: return _page(_(str(e)), code=400)
    return redirect(url_for('.index'))

@bp.post('/user/remove')
@needs('admin')
def remove():
    try: _state().store.remove_user(request.form.get('name', ''), current_user.name)
    except StoreError as e: return _page(_(str(e)), code=400)
    return redirect(url_for('.index'))

@bp.post('/retrain')
@needs('admin')
def retrain():
    st,verb = _state(),request.form.get('verb')
    if not st.settings.home or verb not in ('retrain','rollback','promote'): abort(400)
    path = ''
    if verb=='promote': # the name is looked up among those that are there
        if (name := request.form.get('learner')) not in st.retraining.refused(): abort(404)
        path = Path(st.settings.home)/'refused'/name
    if not st.retraining.start(verb, current_user.name, path): return _page(_('A retraining is going on already.'), code=409)
    return redirect(url_for('.index')+'#retraining')

@bp.get('/retraining')
@needs('admin')
def retraining():
    st = _state()
    text,verdict = st.retraining.last()
    running = st.retraining.running()
    r = make_response(render_template('_retraining.html', text=text, verdict=verdict and VERDICTS[verdict], running=running))
    if not running: r.headers['HX-Refresh'] = 'true' # the buttons and the history have changed, too
    return r
