"The same as the pages, for programs: JSON, a token in a header, one path of code"
import json
from functools import wraps
from flask import Blueprint, abort, g, jsonify, render_template, request, url_for
from concurrent.futures import TimeoutError
from ..accounts import User, token_user
from ..app import _state, fail, limiter
from ..box import Box, rows, take
from .sort import room, uploads

bp = Blueprint('api', __name__, url_prefix='/api/v1')

def token(role='reader'):
    "For requests with a token of somebody with at least this role"
    def wrap(f):
        @wraps(f)
        def _f(*args, **kw):
            st = _state()
            kind,_,t = request.headers.get('Authorization', '').partition(' ')
            g.caller = token_user(st.secret, st.store, t.strip(), st.settings.token_days) if kind.lower()=='bearer' else None
            if g.caller is None: return fail(401, 'a token is needed: Authorization: Bearer TOKEN; make one with mednist-web --token NAME, or on your page')
            if isinstance(g.caller, User) and not g.caller.may(role): return fail(403, f'{g.caller.name} is a {g.caller.role}; this needs a {role}')
            return f(*args, **kw)
        return _f
    return wrap

def _files(): # under whatever field name
    return [(o.filename, o.stream) for k in request.files for o in request.files.getlist(k) if o.filename]

@bp.post('/classify')
@limiter.limit('120/minute')
@token()
def classify():
    st,given = _state(),_files()
    room(st)
    if not given: return fail(400, 'no file was sent: multipart/form-data with one or more files')
    if not st.turns.acquire(timeout=30): return fail(503, 'too many requests wait already; try again in a moment')
    box = None
    try:
        box = Box.create(st.settings)
        take(box, given)
        run = st.runs.start(box)
        try: run.future.result(timeout=300)
        except TimeoutError: return fail(503, 'it takes longer than five minutes; send fewer files at once')
        if why := box.note('error'): return fail(500, '' if why=='internal' else why)
        lf = run.learner
        return jsonify(learner=dict(name=lf.info.get('name', lf.path.name), digest=lf.digest, task=lf.task), results=[_result(r, lf) for r in sorted(rows(box, size=st.settings.max_files)[0], key=lambda r: r['n'])])
    finally:
        st.turns.release()
        if box: st.runs.clear(box)

def _result(r, lf):
    probs = json.loads(r['probs'])
    return dict(name=r['name'], status=r['status'], label=r['label'] or None, confidence=r['confidence'], second=r['second'] or None, second_confidence=r['second_confidence'],
        stranger=r['stranger'], doubts=[o for o in r['doubts'].split('|') if o], error=r['why'] or None, probabilities=dict(zip(lf.labels, probs)) if probs else None)

@bp.post('/similar')
@limiter.limit('120/minute')
@token()
def similar():
    "The images of the index that are most like one"
    from .look import neighbours_of
    st,given = _state(),_files()
    room(st)
    if st.index is None: return fail(404, 'this server has no index of images')
    if len(given)!=1: return fail(400, f'{len(given)} files were sent; send one')
    k = request.form.get('k', 10, int)
    if not 1<=k<=100: return fail(400, f'k is {k}; it must be from 1 to 100')
    box = Box.create(st.settings)
    try:
        take(box, given)
        at = next(iter(sorted(box.files.iterdir())), None)
        if at is None: return fail(400, 'send one image, not a ZIP')
        found,error = neighbours_of(st, at, k)
        return (jsonify(results=found),200) if not error else fail(422, error.replace(f'{at}: ', ''))
    finally: st.runs.clear(box)

@bp.get('/labels')
@limiter.limit('120/minute')
@token()
def labels():
    "Images of the store with what was said of them last"
    st = _state()
    if st.store is None: return fail(404, 'this server has no store')
    a = request.args
    limit = a.get('limit', 100, int)
    if not 1<=limit<=1000: return fail(400, f'limit is {limit}; it must be from 1 to 1000')
    df = st.store.find(label=a.get('label'), predicted=a.get('predicted'), status=a.get('status'), dataset=a.get('dataset'), disagree=a.get('disagree')=='1', uncertain=a.get('uncertain')=='1', limit=limit)
    keep = df[['digest','predicted','confidence','label','status','version']]
    return jsonify(results=[{k:None if v!=v else int(v) if k=='version' and v is not None else v for k,v in r.items()} for r in keep.to_dict('records')])

@bp.post('/labels')
@limiter.limit('600/minute')
@token('reviewer')
def add_label():
    "Say what an image shows"
    from .review import check_label
    st,d = _state(),request.get_json(silent=True)
    if st.store is None: return fail(404, 'this server has no store')
    if not isinstance(d, dict) or not isinstance(d.get('digest'), str) or not isinstance(d.get('label', ''), str) or not isinstance(d.get('expected'), (int,type(None))):
        return fail(400, 'send JSON: digest, label, status, and expected (the version that you saw)')
    label,status = check_label(st.runs.learner, d.get('label', '')),str(d.get('status', 'validated'))
    if not label and status in ('validated','corrected') and st.runs.learner.task!='multi_label': return fail(400, f'{status} needs a label: one of {", ".join(st.runs.learner.labels)}')
    return jsonify(version=st.store.add_label(d['digest'], label, g.caller.name, status, d.get('expected'))),201

@bp.get('/openapi.json')
def openapi():
    from ..openapi import document
    return jsonify(document(request.url_root.rstrip('/')))

@bp.get('/')
def page():
    from ..openapi import document
    return render_template('api.html', doc=document(request.url_root.rstrip('/')))
