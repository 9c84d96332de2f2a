"""Transfer learning for folders of medical images: train, audit, and sort files with a learner you can trust"""

__version__ = "0.1.0"

_lazy = dict(classify_folder='sort', sort_summary='sort', open_learner='learner', Predictor='infer', predict_files='infer', open_image='images')

def __getattr__(name):
    "The names a program needs, each loaded when first asked for, so that `import mednist_fastai` stays light"
    if name not in _lazy: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'.{_lazy[name]}', __name__), name)

def __dir__(): return sorted([*globals(), *_lazy])
