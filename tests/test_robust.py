"Robustness: the clean row is what `evaluate` measures; unreadable files count; the draw is seeded"
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
pytest.importorskip('torch')
from PIL import Image
from mednist_fastai.corrupt import CORRUPTIONS, CorruptionError, corrupt
from mednist_fastai.data import DataError, get_index, make_split
from mednist_fastai.evaluate import evaluate
from mednist_fastai.images import open_image, resize_image
from mednist_fastai.infer import Predictor
from mednist_fastai.interpret import wilson
from mednist_fastai.robust import robustness, robustness_figure, robustness_means

@pytest.fixture(scope='module')
def index(lab): return make_split(get_index(lab/'phantoms'), 'random', seed=0, test=.2)

def test_what_is_measured_is_what_is_shipped(tiny, index):
    t = robustness(tiny, index, ['rotation','noise'], (2,5), n=30)
    assert list(zip(t.corruption, t.strength))==[('clean',0),('rotation',2),('rotation',5),('noise',2),('noise',5)] and set(t.n)=={30}
    rows,p = index[index.split=='test'].sample(30, random_state=0),Predictor(tiny, precision='float32')
    wrong = 0
    for r in rows.itertuples():
        a = corrupt(np.array(open_image(r.path, p.learner.mode)), 'rotation', 5, seed=0)
        x = np.asarray(resize_image(Image.fromarray(a), p.learner.size, p.learner.method))
        wrong += p.labels[p.forward(x[None,None])[0][0].argmax()]!=r.label
    r = t.iloc[2]
    assert r.errors==wrong and r.accuracy==1-wrong/30 and (r.low, r.high)==wilson(wrong, 30)
    assert t.equals(robustness(p, index, ['rotation','noise'], (2,5), n=30))
    whole = robustness(tiny, index, ['text'], (1,))
    assert whole.errors[0]==evaluate(tiny, index).metrics['errors']

def test_files_that_cannot_be_read_are_wrong(tiny, index, tmp_path):
    rows = index[index.split=='test'].head(8).copy()
    (tmp_path/'bad.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    few = robustness(tiny, rows, ['blur'], (1,))
    rows.loc[rows.index[0],'path'] = str(tmp_path/'bad.png')
    t = robustness(tiny, rows, ['blur'], (1,))
    assert set(t.unreadable)=={1} and set(few.unreadable)=={0} and (t.errors>=1).all() and set(t.n)=={8}

def test_means_and_figure():
    t = pd.DataFrame([dict(corruption=k, strength=s, accuracy=a) for k,s,a in (('clean',0,1.),('noise',1,.8),('noise',2,.6),('blur',1,.5))])
    m = robustness_means({'a':t})['a']
    assert np.allclose([m['noise'], m['blur'], m['mean'], m['clean']], [.7,.5,.6,1.]) and list(m.index)==['noise','blur','mean','clean']
    whole = pd.DataFrame([dict(corruption='clean', strength=0, accuracy=1.)]+[dict(corruption=k, strength=s, accuracy=.5) for k in CORRUPTIONS for s in range(1, 6)])
    fig = robustness_figure({'a':whole, 'b':whole})
    assert len(fig.axes)==2 and [t.get_text() for t in fig.axes[0].get_yticklabels()]==list(CORRUPTIONS)

def test_typed_errors(tiny, index):
    with pytest.raises(CorruptionError, match='snow'): robustness(tiny, index, ['snow'])
    with pytest.raises(CorruptionError, match='strengths'): robustness(tiny, index, ['noise'], (6,))
    with pytest.raises(DataError, match='no holdout rows'): robustness(tiny, index, split='holdout')
    with pytest.raises(DataError, match='Spine'): robustness(tiny, index.assign(label='Spine'))
