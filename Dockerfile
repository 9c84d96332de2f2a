# The page with everything that it needs and nothing that training needs a GPU for. tests/test_docker.py does each step outside Docker.
FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /srv/mednist --create-home mednist && install -d -o mednist /data
WORKDIR /build
COPY settings.ini setup.py pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md ./
COPY mednist_fastai ./mednist_fastai
# torch for the CPU: a tenth of the size
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu '.[web,store,search]' && rm -rf /build
WORKDIR /srv/mednist
USER mednist
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["sh", "-c", "test -e /data/store/store.json || mednist-store create /data/store --by \"${MEDNIST_ADMIN:-admin}\" ${MEDNIST_FASTAI_STORE_URL:+--url \"$MEDNIST_FASTAI_STORE_URL\"}; exec mednist-web --host 0.0.0.0 --port 8000 --data /data/web --store /data/store --names \"$MEDNIST_NAMES\" --proxies \"${MEDNIST_PROXIES:-0}\""]
