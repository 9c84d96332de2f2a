"What Prometheus asks for: how much, how long, how full; nothing about any person or image"
import time
from flask import g, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

class Metrics:
    "Counters of one application"
    def __init__(self):
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)
        self.requests = Counter('mednist_requests_total', 'Requests', ['endpoint','status'], registry=r)
        self.seconds = Histogram('mednist_request_seconds', 'Seconds a request', ['endpoint'], registry=r)
        self.uploads = Counter('mednist_uploaded_files_total', 'Files taken in', registry=r)

    def watch(self, st):
        "Values that are looked up when they are asked for"
        def gauge(name, text, f): Gauge(name, text, registry=self.registry).set_function(f)
        gauge('mednist_classified_images', 'Images classified since the start', lambda: st.runs.total)
        gauge('mednist_runs', 'Sessions that are sorted or wait for it', lambda: len(st.runs.active))
        gauge('mednist_sessions', 'Sessions on the disk', lambda: sum(1 for _ in st.runs.sessions.iterdir()))
        gauge('mednist_batch_images', 'Images a batch, mean of the last hundred', lambda: (lambda o: sum(o)/len(o) if o else 0)(st.runs.batches.sizes))

    def attach(self, app):
        @app.before_request
        def _start(): g.began = time.perf_counter()
        @app.after_request
        def _end(r):
            where = request.endpoint or 'none'
            self.requests.labels(where, r.status_code).inc()
            if hasattr(g, 'began'): self.seconds.labels(where).observe(time.perf_counter()-g.began)
            return r

    def text(self): return generate_latest(self.registry)
