"A page on which people drop images, see where they went, and correct them: `mednist-web`, or `create_app` for another server"

def create_app(settings=None):
    "The Flask application of a `Settings`; raises `WebError` for settings that are not safe"
    try: import flask, flask_babel, flask_limiter, flask_login, flask_wtf, argon2, prometheus_client
    except ImportError as e:
        from .settings import WebError
        raise WebError(f"the page needs {e.name}: pip install 'mednist_fastai[web]'") from e
    from .app import make_app
    return make_app(settings)
