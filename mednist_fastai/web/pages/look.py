"One image: large, with what the learner thinks, where it looked, what is like it and what people said"
import hashlib, json, re
from flask import Blueprint, Response, abort, g, render_template, request, url_for
from flask_login import current_user
from ..app import _state, limiter
from ..box import neighbours, row
from ..pictures import LARGE, THUMB, Cams, cached, decoders, png, read_window, window_key
from ...images import WINDOWS, ImageError

bp = Blueprint('look', __name__)

def picture(data): return Response(data, content_type='image/png')

def _file(n):
    "The row and the path of a readable file of this session, and who sorted it; else 404"
    r,by = (row(g.box, n),g.box.learner()) if g.box and n<10**7 else (None,None)
    if not r or not by or r['status'] not in ('sorted','review'): abort(404)
    return r,g.box.files/f'{n:07}',by

def _window():
    try: return read_window(request.args)
    except ValueError: abort(400)

def bars(labels, probs, thresholds=None):
    "What the bars show, the largest first; of findings in the order of the learner, with their thresholds"
    res = [dict(label=l, p=p, width=f'{100*p:.1f}', threshold=None if thresholds is None else float(t), at=None if thresholds is None else f'{100*float(t):.1f}', found=thresholds is not None and p>=float(t))
           for l,p,t in zip(labels, probs, thresholds if thresholds is not None else labels)]
    return res if thresholds is not None else sorted(res, key=lambda o: -o['p'])

def thresholds_of(lf): return lf.thresholds if lf.task=='multi_label' else None

@bp.get('/file/<int:n>/')
def look(n):
    st = _state()
    r,_,by = _file(n)
    window,lf = _window(),st.runs.learner_of(by.digest) # its own maps go with these numbers, no others
    before,after = neighbours(g.box, n)
    view = url_for('.image', n=n, **{k:v for k,v in request.args.items() if k in ('window','centre','width')})
    return render_template('look.html', r=r, by=by, multi=by.task=='multi_label', earlier=st.runs.earlier(g.box), bars=bars(by.labels, json.loads(r['probs']), by.thresholds), view=view, windows=WINDOWS, window=window, args=request.args, before=before, after=after,
        cam=lf and Cams.possible(lf), gone=lf is None, similar=may_see_similar(st), people=st.store is not None and current_user.is_authenticated)

@bp.get('/file/<int:n>/thumb.png')
@limiter.exempt
def thumb(n):
    _,path,_ = _file(n)
    return _png(g.box.views/f'{n:07}-thumb.png', path, THUMB)

@bp.get('/file/<int:n>/image.png')
def image(n):
    _,path,_ = _file(n)
    w = _window() # of one's own there are endlessly many: none of them is kept
    return _png(None if isinstance(w, tuple) else g.box.views/f'{n:07}-{window_key(w)}.png', path, LARGE, w)

def _png(at, path, side, window=None):
    try: return picture(cached(at, lambda: png(path, side, window)) if at else png(path, side, window))
    except ImageError: abort(404) # it was readable when it was sorted, or the file has no such window

# Grad-CAM

def _cam(n):
    r,path,by = _file(n)
    label = request.values.get('label') or r['label'].split('|')[0]
    if label not in by.labels: label = by.labels[0]
    return r,path,by,label,g.box.views/f'{n:07}-cam-{hashlib.sha256(f"{by.digest} {label}".encode()).hexdigest()[:12]}.png'

@bp.post('/file/<int:n>/cam')
@limiter.limit('30/minute')
def start_cam(n):
    r,path,by,label,at = _cam(n)
    lf = _state().runs.learner_of(by.digest)
    if lf is None or not Cams.possible(lf): abort(404)
    if not _state().cams.start(path, lf, label, at): abort(503)
    return cam(n)

@bp.get('/file/<int:n>/cam')
def cam(n):
    r,_,_,label,at = _cam(n)
    return render_template('_cam.html', r=r, label=label, state=_state().cams.state(at))

@bp.get('/file/<int:n>/cam.png')
def cam_image(n):
    at = _cam(n)[-1]
    if not at.exists(): abort(404)
    return picture(at.read_bytes())

# Similar images, and what people said

def may_see_similar(st):
    "Images of the index may be of patients: where people sign in, only they see them"
    return st.index is not None and (st.store is None or current_user.is_authenticated)

def neighbours_of(st, path, k=8):
    "The nearest images of the index, with where their thumbnails are"
    from ...search import SearchError
    try: df = st.index.similar(path, k)
    except (SearchError,ImageError) as e: return [],str(e)
    return [dict(label=r.label, similarity=r.similarity, digest=r.digest) for r in df.itertuples()],''

@bp.get('/file/<int:n>/similar')
def similar(n):
    st = _state()
    if not may_see_similar(st): abort(404)
    _,path,by = _file(n)
    found,error = neighbours_of(st, path)
    return render_template('_similar.html', found=found, error=error, other=None if st.index.learner.digest==by.digest else st.index.learner)

@bp.get('/file/<int:n>/people')
def people(n):
    from .review import said_of
    st = _state()
    if st.store is None or not current_user.is_authenticated: abort(404)
    _,path,_ = _file(n)
    digest = cached(g.box.views/f'{n:07}-digest', lambda: _digest(path)).decode()
    return render_template('_people.html', **said_of(st.store, digest))

def _digest(path):
    from ...store import pixel_file
    with decoders: return hashlib.sha256(pixel_file(path)[0]).hexdigest().encode()

@bp.get('/indexed/<digest>.png')
@limiter.exempt
def indexed(digest):
    "Thumbnail of an image of the index"
    st = _state()
    if not may_see_similar(st) or not re.fullmatch('[0-9a-f]{64}', digest): abort(404)
    now = st.index._now # one state of the index for both looks
    at = now.where('digest', [digest])
    if not len(at): abort(404)
    try: return picture(png(now.rows(at[:1]).path[0], THUMB))
    except ImageError: abort(404) # gone since it was indexed
