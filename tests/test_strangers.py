"""Strangers: from a recipe with images of no class to a sorted folder that refuses them"""
import json, shutil
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from mednist_fastai.data import DataError
from mednist_fastai.learner import LearnerError, LearnerFormatError, open_learner, set_trust
from mednist_fastai.phantom import make_phantoms, phantom_images
from mednist_fastai.sort import SortError, classify_folder
from mednist_fastai.strangers import load_strangers
from mednist_fastai.train import Recipe, recipe_index, train
import mednist_fastai.train as train_module

@pytest.fixture(scope='module')
def few(): # outliers of each kind
    old,train_module.OUTLIERS = train_module.OUTLIERS,3
    yield
    train_module.OUTLIERS = old

@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    at = tmp_path_factory.mktemp('phantoms')/'phantoms'
    make_phantoms(at, n=40)
    return Recipe('strange', source=str(at), strangers='outliers', arch='test_resnet', policy='elsewhere', epochs=4, lr=4e-3, bs=32, alpha=.25, cache=False)

def test_a_recipe_with_strangers_trains_and_saves_as_any_other(recipe, few, tmp_path):
    from mednist_fastai.evaluate import run
    df = recipe_index(recipe)
    none = df[df.label=='']
    assert len(none)==3*18 and set(none.split)=={'train'} and set(none.source)=={'outlier/fields','outlier/devices','outlier/derived'}
    record = run(recipe, tmp_path/'run', bar=False, precisions=())
    config = json.loads((tmp_path/'run/learner/config.json').read_text())
    assert len(config['label_names'])==6==config['num_classes']
    assert record['data']['counts']['train']['']==54 and all(m['unreadable']==0 for m in record['metrics'])

def test_strangers_that_are_held_out_take_no_part(recipe, few, tmp_path):
    odd = tmp_path/'odd'
    make_phantoms(odd, n=2)
    r = replace(recipe, strangers=f'{odd}+outliers', hold=['phantom/Hand'])
    df = recipe_index(r)
    assert (df.source=='stranger/phantom').sum()==10 # of twelve
    with pytest.raises(DataError, match='nobody'): recipe_index(replace(r, hold=['nobody']))

def test_class_weights_and_strangers_do_not_go_together(recipe, few):
    with pytest.raises(DataError, match='alpha'): train(replace(recipe, weighted=True), bar=False)

# ---- a sorted folder

@pytest.fixture(scope='module')
def knows(tiny, tmp_path_factory):
    "The small learner of the suite, with trust fitted on phantoms, and the index that it was fitted on"
    from mednist_fastai.assure import fit_trust
    from mednist_fastai.data import make_split
    tmp = tmp_path_factory.mktemp('knows')
    df = make_split(make_phantoms(tmp/'phantoms', n=40, seed=3), 'random')
    return fit_trust(shutil.copytree(tiny, tmp/'learner'), df, method='knn').path

@pytest.fixture
def mixed(tmp_path):
    "Hands, and what is none: noise, a blank frame, a picture in colour, one of ten pixels"
    rng,src = np.random.default_rng(0),tmp_path/'src'
    src.mkdir()
    for i,x in enumerate(phantom_images('Hand', 4, seed=9)): Image.fromarray(x).save(src/f'hand{i}.png')
    x = phantom_images('Hand', 1, seed=8)[0]
    odd = dict(noise=rng.integers(0, 256, (64,64), dtype=np.uint8), blank=np.full((64,64), 70, np.uint8), colour=np.stack([x//4, x, 255-x], -1), tiny=x[20:30,20:30])
    for k,a in odd.items(): Image.fromarray(a).save(src/f'{k}.png')
    return src

def _by_name(df): return df.set_index(df.path.map(lambda p: Path(p).stem))

def test_doubts_and_scores_are_in_the_report(knows, mixed, tmp_path):
    from mednist_fastai.infer import Predictor
    df = classify_folder(mixed, tmp_path/'dst', knows, min_confidence=0, progress=False)
    t = _by_name(df)
    for k in ('noise','blank','colour','tiny'): assert k in t.doubts[k].split('|') and t.status[k]=='review' and Path(t.destination[k]).parent.name=='_review'
    lf,half = open_learner(knows),float(t.stranger.median())
    assert ((t.stranger>lf.stranger_threshold)==t.doubts.str.contains('stranger')).all()
    other = set_trust(shutil.copytree(knows, tmp_path/'half'), lf.info['temperature'], load_strangers(knows/'strangers.safetensors'), half)
    u = _by_name(classify_folder(mixed, tmp_path/'dst2', other.path, min_confidence=0, progress=False))
    assert (u.doubts.str.contains('stranger')==(t.stranger>half)).all() and u.doubts.str.contains('stranger').sum()==4
    got = {Path(o.path).stem:o for o in Predictor(knows).predict(list(df.path))}
    for k,r in t.iterrows():
        assert r.stranger==pytest.approx(got[k].stranger, abs=1e-5)
        order = np.sort(got[k].probabilities)[::-1]
        assert (r.confidence,r.second_confidence)==pytest.approx(tuple(order[:2]), abs=1e-6) and r.second!=r.label

def test_they_survive_a_second_run(knows, mixed, tmp_path):
    "A later run takes decisions from the journal, their scores and reasons too"
    a = classify_folder(mixed, tmp_path/'dst', knows, min_confidence=.5, progress=False)
    Path(a.destination.iloc[0]).unlink()
    pd.testing.assert_frame_equal(classify_folder(mixed, tmp_path/'dst', knows, min_confidence=.5, progress=False), a)

def test_strangers_may_be_sorted_but_broken_pictures_never(knows, mixed, tmp_path):
    t = _by_name(classify_folder(mixed, tmp_path/'dst', knows, min_confidence=0, strangers='sort', progress=False))
    assert not t.doubts.str.contains('stranger').any() and (t.status[['noise','blank','colour','tiny']]=='review').all()
    assert t.stranger.notna().all()
    with pytest.raises(SortError, match="strangers='sort'"): classify_folder(mixed, tmp_path/'dst', knows, min_confidence=0, progress=False)

def test_the_learner_says_how_sure_is_sure(knows, mixed, tmp_path):
    "Without a word the folder's own confidence counts, another risk takes another, and 0 is none"
    lf = open_learner(knows)
    own = set_trust(shutil.copytree(knows, tmp_path/'own'), lf.info['temperature'], load_strangers(knows/'strangers.safetensors'), lf.stranger_threshold, [(.001,None),(.01,.999),(.1,.2)], .01)
    runs = {k:_by_name(classify_folder(mixed, tmp_path/k, own.path, progress=False, **kw)) for k,kw in dict(own={}, more=dict(risk=.1), none=dict(min_confidence=0)).items()}
    for k,c in dict(own=.999, more=.2, none=0).items(): assert (runs[k].doubts.str.contains('unsure')==(runs[k].confidence<c)).all()
    assert runs['own'].doubts.str.contains('unsure').sum() > runs['more'].doubts.str.contains('unsure').sum()
    with pytest.raises(LearnerFormatError, match='0.01, 0.1'): classify_folder(mixed, tmp_path/'x', own.path, risk=.001)

@pytest.mark.parametrize('name', ['strangers.safetensors','config.json'])
def test_a_damaged_score_is_refused(knows, mixed, tmp_path, name):
    bad = shutil.copytree(knows, tmp_path/'bad')
    b = bytearray((bad/name).read_bytes())
    b[len(b)//2] ^= 1
    (bad/name).write_bytes(b)
    with pytest.raises(LearnerError): classify_folder(mixed, tmp_path/'dst', bad)
    assert not (tmp_path/'dst').exists()

@pytest.mark.parametrize('precision', ['bfloat16','int8'])
def test_a_temperature_is_in_every_graph(knows, precision):
    "Whatever runs the folder gives calibrated probabilities"
    from mednist_fastai.engines import supported
    from mednist_fastai.infer import Predictor, Torch
    x = np.stack([phantom_images(o, 2, seed=4) for o in ('Hand','CXR')]).reshape(4, 1, 64, 64)
    want = Predictor(knows, precision='float32').forward(x)[0]
    assert np.allclose(Torch(open_learner(knows), 'cpu').runner()[0](x)[0], want, atol=1e-4)
    if precision not in supported() or precision not in open_learner(knows).precisions: pytest.skip(f'{precision} is not for this learner or machine')
    assert np.allclose(Predictor(knows, precision=precision).forward(x)[0], want, atol=.1)
