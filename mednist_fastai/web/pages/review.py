"People look at what the learner said: validate, correct, comment, take back"
import csv, io, json, logging, warnings
from contextlib import suppress
import numpy as np, sqlalchemy as sa
from flask import Blueprint, Response, abort, g, redirect, render_template, request, url_for
from flask_babel import gettext as _
from flask_login import current_user
from ..accounts import needs
from ..app import _state, limiter
from ..box import GoneError, waiting
from ..pictures import LARGE, THUMB, png
from ..words import N_
from .look import bars, may_see_similar, neighbours_of, picture, thresholds_of
from ...images import ImageError, _guard
from ...sort import NO_FINDING, read_report
from ...store import ConflictError, StoreError, UnknownError, _latest, comments, images, labels, predictions, users

log = logging.getLogger('mednist_fastai.web')
bp = Blueprint('review', __name__, url_prefix='/review')
ORDERS = dict(uncertain=N_('least sure first'), disagree=N_('people and learner differ'), unsure=N_('somebody was unsure'), new=N_('in order of arrival'))

def check_label(lf, label:str)->str:
    "A label of the learner, findings in its order; raises `StoreError`"
    said = [o for o in label.split('|') if o]
    if strange := [o for o in said if o not in lf.labels]: raise StoreError(f'{strange[0]!r} is none of {", ".join(lf.labels)}')
    if lf.task!='multi_label' and len(said)>1: raise StoreError('an image has one class')
    return '|'.join(o for o in lf.labels if o in said)

def queue(order, limit=1000):
    "Digests to be looked at, in order"
    how = dict(uncertain=dict(status='none', uncertain=True), disagree=dict(disagree=True), unsure=dict(status='unsure'), new=dict(status='none'))[order]
    return _state().store.find(**how, limit=limit).digest.tolist()

def _order():
    o = request.values.get('order') or 'uncertain'
    if o not in ORDERS: abort(400)
    return o

def progress_of(store):
    "How many images there are, and how many of them have been looked at"
    l = _latest(labels, labels.c.version)
    with store.read() as con: by = dict(con.execute(sa.select(l.c.status, sa.func.count()).group_by(l.c.status)).all())
    n = store.count(images)
    return dict(all=n, done=sum(v for k,v in by.items() if k!='withdrawn'), by=by)

def said_of(store, digest):
    "What people said of an image; nothing where the store doesn't have it"
    try: h = store.history(digest)
    except UnknownError: return dict(digest='', history=[], comments=[])
    q = sa.select(comments.c.id, comments.c.text, comments.c.time, users.c.name.label('by')).join(users).join(images, images.c.id==comments.c.image_id).where(images.c.digest==digest).order_by(comments.c.id)
    return dict(digest=digest, history=list(h.itertuples())[::-1], comments=list(store.frame(q).itertuples()))

def _image(digest):
    "Row of an image and its last prediction, else 404"
    st = _state()
    q = sa.select(images).where(images.c.digest==digest)
    p = sa.select(predictions).join(images).where(images.c.digest==digest).order_by(predictions.c.id.desc()).limit(1)
    with st.store.read() as con: i,p = con.execute(q).first(),con.execute(p).first()
    if i is None: abort(404)
    return i,p

def _path(digest): return _state().store.root/_image(digest)[0].path

@bp.get('/')
@needs('reviewer')
def index():
    order = _order()
    q = queue(order, 1)
    if q: return redirect(url_for('.image', digest=q[0], order=order))
    return render_template('review_empty.html', order=order, orders=ORDERS, progress=progress_of(_state().store))

@bp.get('/<digest>')
@needs('reviewer')
def image(digest): return _shown(digest)

def _shown(digest, conflict='', code=200):
    st,order = _state(),_order()
    i,p = _image(digest)
    lf,said = st.runs.learner,said_of(st.store, digest)
    names,probs = (json.loads(p.labels),np.frombuffer(p.probabilities, '<f4').tolist()) if p else (lf.labels,[])
    now = said['history'][0] if said['history'] else None
    q = queue(order)
    at = q.index(digest) if digest in q else -1
    current = now.label if now is not None and now.status in ('validated','corrected') else (p.label if p else '')
    return render_template('review.html', i=i, p=p, order=order, orders=ORDERS, said=said, version=now.version if now is not None else 0, current=current.split('|'), predicted=p.label.split('|') if p else [],
        bars=bars(names, probs, thresholds_of(lf) if p.learner==lf.digest else None) if probs else [], other=p.learner if p and p.learner!=lf.digest else '', labels=lf.labels, conflict=conflict, progress=progress_of(st.store), left=len(q),
        before=q[at-1] if at>0 else None, after=q[at+1] if 0<=at<len(q)-1 else (q[0] if at<0 and q else None), undo=request.args.get('undo', ''), similar=may_see_similar(st)),code

@bp.get('/<digest>/<any(thumb,image):kind>.png')
@limiter.exempt
@needs('reviewer')
def pixels(digest, kind): return picture(png(_path(digest), THUMB if kind=='thumb' else LARGE))

@bp.get('/<digest>/similar')
@needs('reviewer')
def similar(digest):
    st = _state()
    if not may_see_similar(st): abort(404)
    i,p = _image(digest)
    found,error = neighbours_of(st, st.store.root/i.path)
    return render_template('_similar.html', found=found, error=error, other=st.index.learner if p and p.learner!=st.index.learner.digest else None)

def _expected():
    e = request.form.get('expected', type=int)
    if e is None: abort(400)
    return e

@bp.post('/<digest>')
@needs('reviewer')
def say(digest):
    "One answer; the next image comes"
    st,order,f = _state(),_order(),request.form
    _image(digest)
    q = queue(order)
    status = f.get('status', '')
    if status not in ('label','unsure'): abort(400)
    label = check_label(st.runs.learner, '|'.join(f.getlist('label'))) if status=='label' else ''
    if status=='label' and not label and st.runs.learner.task!='multi_label': abort(400)
    p = _image(digest)[1]
    if status=='label': status = 'validated' if p is not None and set(label.split('|'))-{''}==set(p.label.split('|'))-{'',NO_FINDING} else 'corrected'
    try: st.store.add_label(digest, label, current_user.name, status, _expected())
    except ConflictError: return _shown(digest, conflict=True, code=409)
    at = q.index(digest)+1 if digest in q else 0
    after = next((o for o in q[at:]+q[:at] if o!=digest), None)
    if after is None: return redirect(url_for('.index', order=order, undo=digest))
    return redirect(url_for('.image', digest=after, order=order, undo=digest))

@bp.post('/<digest>/undo')
@needs('reviewer')
def undo(digest):
    "Take back one's own last answer"
    st = _state()
    h = said_of(st.store, digest)['history']
    if not h or h[0].by!=current_user.name or h[0].status=='withdrawn': return _shown(digest, conflict=True, code=409)
    try: st.store.withdraw_label(digest, current_user.name, h[0].version)
    except ConflictError: return _shown(digest, conflict=True, code=409)
    return redirect(url_for('.image', digest=digest, order=_order()))

@bp.post('/<digest>/comment')
@needs('reviewer')
def comment(digest):
    _state().store.add_comment(digest, request.form.get('text', ''), current_user.name)
    return redirect(url_for('.image', digest=digest, order=_order()))

@bp.post('/<digest>/comment/<int:n>/remove')
@needs('reviewer')
def remove_comment(digest, n):
    _state().store.remove_comment(n, current_user.name)
    return redirect(url_for('.image', digest=digest, order=_order()))

@bp.get('/export.csv')
@needs('reviewer')
def export():
    "What people said, a row an image"
    df = _state().store.people()
    out = io.StringIO()
    w = csv.writer(out, lineterminator='\n', quoting=csv.QUOTE_NONNUMERIC)
    cols = ['digest','label','status','predicted','users','n','conflict','time']
    w.writerow(cols)
    for r in df[cols].itertuples(index=False): w.writerow([_guard(o) if isinstance(o, str) else int(o) if isinstance(o, (bool,np.bool_)) else o for o in r])
    return Response(out.getvalue(), content_type='text/csv; charset=utf-8', headers={'Content-Disposition':'attachment; filename=labels.csv'})

# From a session into the store

@bp.post('/keep')
@needs('reviewer')
def keep():
    "Bring the session's images into the store, pixels only"
    st,box = _state(),g.box
    by = box and box.learner()
    if not by or waiting(box): abort(410)
    with st.keeping: # two clicks are one
        if box.note('kept')=='working': return redirect(url_for('sort.index'))
        box.note('kept', 'working')
    st.keeper.submit(_record, st, box, by, current_user.name)
    return redirect(url_for('sort.index'))

def _record(st, box, sorter, by):
    "In a thread of its own, a session after the other: each is bound by the disk, and thousands take minutes"
    kept,error = '',''
    try: kept,error = 'done',_keep(st, box, sorter, by)
    except StoreError as e: error = str(e)
    except Exception: # the thread's last line
        log.exception('a session could not be brought into the store')
        error = 'internal'
    with suppress(GoneError):
        box.note('error', error)
        box.note('kept', kept)

def _keep(st, box, sorter, by):
    "As what the learner said that sorted the session, whichever is in use now"
    df = read_report(box.folder(sorter.digest))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        st.store.record(df, sorter, by)
    return '; '.join(str(o.message) for o in told if issubclass(o.category, UserWarning))
