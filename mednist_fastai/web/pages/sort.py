"Drop files, see where they went, take them home"
import secrets, shutil
from flask import Blueprint, abort, g, make_response, redirect, render_template, request, send_file, session, url_for
from flask_babel import gettext as _
from flask_login import current_user
from ..app import LANGUAGES, _state, limiter, own_path
from ..box import Box, EarlierLearnerError, FullError, LimitError, SortedBy, counts, rows, take, waiting, write_zip

bp = Blueprint('sort', __name__)

def room(st, more=0):
    "Refuse before anything is read or written where the disk is nearly full"
    if shutil.disk_usage(st.settings.data).free < st.settings.spare+2*(request.content_length or 0)+more: raise FullError()

def uploads():
    "(name, stream) of what was sent; `names` are the paths within a folder, which browsers don't put into the file's own name"
    files,names = request.files.getlist('files'),request.form.getlist('names')
    names = names if len(names)==len(files) else [o.filename for o in files]
    return [(n or o.filename, o.stream) for n,o in zip(names, files) if o.filename or n]

def progress(box):
    "How far a session is"
    run = _state().runs.active.get(box.sid)
    left = waiting(box)
    return dict(running=run is not None, left=max(0, left-(run.done if run else 0)), error='' if run else box.note('error'), earlier=_state().runs.earlier(box), waiting=left)

def sorted_by(st, box):
    "Who sorted a session, else who would"
    return box and box.learner() or SortedBy.of(st.runs.learner)

def _page(template, code=200):
    st,box = _state(),g.box
    status,label = request.args.get('status') or None,request.args.get('label')
    found,page,pages,n = rows(box, status, label, request.args.get('page', 1, int)) if box else ([],1,1,0)
    c = counts(box) if box else dict(all=0, labels=[])
    by = sorted_by(st, box)
    return render_template(template, box=box, by=by, multi=by.task=='multi_label', counts=c, rows=found, page=page, pages=pages, n=n, status=status, label=label, progress=progress(box) if box else None, kept=box and box.note('kept')),code

@bp.get('/')
def index(): return _page('sort.html')

@bp.get('/results')
def results(): return _page('_session.html')

@bp.post('/upload')
@limiter.limit('300/minute')
def upload():
    st = _state()
    room(st)
    given = uploads()
    if not given: abort(400)
    if g.box and (by := st.runs.earlier(g.box)): raise EarlierLearnerError(by)
    box = g.box or Box.create(st.settings)
    try: st.metrics.uploads.inc(take(box, given))
    except (LimitError,FullError):
        if not g.box: st.runs.clear(box)
        raise
    if not g.box and st.store is not None and current_user.is_authenticated: box.note('owner', current_user.name)
    g.box,session['sid'] = box,box.sid
    if box.note('kept')=='done': box.note('kept', '') # the new ones aren't
    st.runs.start(box)
    if not request.headers.get('HX-Request'): return redirect(url_for('.index'))
    return render_template('_progress.html', progress=progress(box), counts=counts(box))

@bp.get('/progress')
def show_progress():
    if not g.box: abort(410)
    p = progress(g.box)
    if p['running']: return render_template('_progress.html', progress=p, counts=counts(g.box))
    r = make_response(_page('_session.html'))
    r.headers.update({'HX-Retarget':'#session', 'HX-Reswap':'outerHTML'})
    return r

@bp.post('/again')
def again():
    "Go on after a failure, or with `all` begin anew with the learner in use"
    st,box = _state(),g.box
    if not box: abort(410)
    if not request.form.get('all'): st.runs.start(box)
    else:
        with st.keeping:
            if box.note('kept')!='working': st.runs.again(box) # what goes into the store is read from where it was sorted to
    return redirect(url_for('.index'))

@bp.get('/download')
@limiter.limit('20/minute')
def download():
    if not g.box: abort(410)
    st = _state()
    if waiting(g.box): return redirect(url_for('.index'))
    room(st, g.box.size())
    by,at = sorted_by(st, g.box),g.box.part/f'{secrets.token_hex(8)}.zip'
    try:
        write_zip(g.box, by.labels, by.task=='multi_label', at)
        f = open(at, 'rb')
    finally: # open, it stays until it is sent, and no crash leaves it behind; where that can't be (Windows) the next start removes it
        try: at.unlink(missing_ok=True)
        except PermissionError: pass
    return send_file(f, 'application/zip', as_attachment=True, download_name='sorted.zip')

@bp.post('/clear')
def clear():
    "The person's own wish: everything of this session goes"
    if g.box: _state().runs.clear(g.box)
    session.pop('sid', None)
    return redirect(url_for('.index'))

@bp.post('/language')
def language():
    if request.form.get('language') in LANGUAGES: session['language'] = request.form['language']
    return redirect(own_path(request.form.get('back', '')))
