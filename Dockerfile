# The page with all that it needs. Every step is done outside Docker, too: tests/test_docker.py.
FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin mednist && install -d -o mednist -m 700 /data
WORKDIR /build
COPY settings.ini setup.py pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md ./
COPY mednist_fastai ./mednist_fastai
# a package index of one's own, where builds may not reach the public one
ARG PIP_INDEX_URL
RUN pip install --no-cache-dir '.[web,store,search]' && rm -rf /build
WORKDIR /data
USER 10001
VOLUME /data
# an upload waits in the volume, whose room the page watches, and not in memory
ENV TMPDIR=/data/tmp
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=6s --start-period=90s CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(u.Request('http://127.0.0.1:8000/health', headers={'Host':os.environ['MEDNIST_FASTAI_NAMES'].split(',')[0]}), timeout=5)"]
# refuse before anything is made, make the store at the first start, and let the page take the place of the shell, so that it gets the signals
CMD : "${MEDNIST_FASTAI_WEB_SECRET:?is missing, see README.md}" "${MEDNIST_FASTAI_NAMES:?is missing, see README.md}" && \
    mkdir -p /data/tmp && \
    { test -e /data/store/store.json || mednist-store create /data/store --by "${MEDNIST_FASTAI_ADMIN:-admin}" ${MEDNIST_FASTAI_STORE_URL:+--url "$MEDNIST_FASTAI_STORE_URL"}; } && \
    exec mednist-web --host 0.0.0.0 --port 8000 --data /data/web --store /data/store --names "$MEDNIST_FASTAI_NAMES" --proxies "${MEDNIST_FASTAI_PROXIES:-0}"
