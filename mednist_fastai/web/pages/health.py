"For whoever watches the server"
import ipaddress, shutil
from flask import Blueprint, Response, abort, jsonify, request
from ..accounts import token_user
from ..app import _state, limiter

bp = Blueprint('health', __name__)

@bp.get('/health')
@limiter.exempt
def health():
    "200 where everything that a person needs works, else 503"
    st = _state()
    found = dict(network=st.runs.batches.thread.is_alive(), disk=shutil.disk_usage(st.settings.data).free>st.settings.spare, store=True)
    if st.store:
        from sqlalchemy import text
        from sqlalchemy.exc import SQLAlchemyError
        try:
            with st.store.read() as con: con.execute(text('SELECT 1'))
        except SQLAlchemyError: found['store'] = False
    return jsonify(ok=all(found.values()), **found),200 if all(found.values()) else 503

@bp.get('/metrics')
@limiter.exempt
def metrics():
    "Prometheus text, for this machine or with a token"
    st = _state()
    here = request.remote_addr and ipaddress.ip_address(request.remote_addr).is_loopback and not st.settings.proxies
    token = request.headers.get('Authorization', '').removeprefix('Bearer ')
    if not here and not token_user(st.secret, st.store, token, st.settings.token_days): abort(403)
    return Response(st.metrics.text(), content_type='text/plain; version=0.0.4; charset=utf-8')
