"Sign in, sign out, one's own password and token"
from flask import Blueprint, g, redirect, render_template, request, session, url_for
from flask_babel import gettext as _
from flask_login import current_user, login_required, login_user, logout_user
from ..accounts import check_password, leave_seat, make_token, set_password, take_seat
from ..app import _state, limiter, own_path
from ...store import StoreError

bp = Blueprint('accounts', __name__)

@bp.get('/sign-in')
def sign_in(): return render_template('sign_in.html', next=request.args.get('next', ''), error='')

@bp.post('/sign-in')
@limiter.limit(lambda: _state().settings.sign_in_limit, key_func=lambda: f'sign-in {request.remote_addr}')
@limiter.limit(lambda: _state().settings.sign_in_limit, key_func=lambda: f'sign-in {request.form.get("name", "")[:190]}')
def do_sign_in():
    user = check_password(_state().store, request.form.get('name', ''), request.form.get('password', ''))
    if user is None: return render_template('sign_in.html', next=request.form.get('next', ''), error=_('Name and password don\'t go together.')),401
    mine = {k:session[k] for k in ('sid','language') if k in session}
    leave_seat(_state().settings)
    session.clear() # what a stranger may have put into the browser before ends here
    session.update(mine)
    take_seat(_state().settings)
    login_user(user)
    if g.box: g.box.note('owner', user.name)
    return redirect(own_path(request.form.get('next', '')))

@bp.post('/sign-out')
def sign_out():
    leave_seat(_state().settings)
    logout_user()
    return redirect(url_for('sort.index'))

@bp.get('/me')
@login_required
def me(): return render_template('me.html', token='', error='', done='')

@bp.post('/me/token')
@login_required
def token():
    st = _state()
    return render_template('me.html', token=make_token(st.secret, st.store, current_user.name), error='', done='')

@bp.post('/me/password')
@limiter.limit('10/minute')
@login_required
def password():
    st,f = _state(),request.form
    if check_password(st.store, current_user.name, f.get('old', '')) is None: return render_template('me.html', token='', error=_('The present password is another one.'), done=''),400
    try: set_password(st.store, current_user.name, f.get('new', ''), current_user.name)
    except StoreError as e: return render_template('me.html', token='', error=_(str(e)), done=''),400
    login_user(check_password(st.store, current_user.name, f.get('new', '')))
    return render_template('me.html', token='', error='', done=_('Your password is changed. You are signed out everywhere else, and your tokens have ended.'))
