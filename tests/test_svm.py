"The support vector machine: fitted, saved without a pickle, and run like every other learner"
import json, shutil, subprocess, sys
from collections import Counter
from pathlib import Path
import numpy as np
import pytest
torch = pytest.importorskip('torch')
from mednist_fastai.data import DataError, get_index, make_split
from mednist_fastai.evaluate import evaluate, run
from mednist_fastai.images import load_image
from mednist_fastai.infer import predict_files
from mednist_fastai.learner import (FILES, LearnerCheckError, LearnerDamagedError, LearnerExistsError, LearnerFormatError, check_sklearn,
                                    open_learner, save_sklearn)
from mednist_fastai.models import WeightsError, create_backbone, flat_pixels, svm_search
from mednist_fastai.train import Recipe, fit_svm, train

OPTIONS = dict(n_components=[8,16], cs=[1,10], gammas=[1e-3], cv=3, grid_n=120)

@pytest.fixture(scope='module')
def index(lab): return make_split(get_index(lab/'phantoms'), 'random', seed=0)

@pytest.fixture(scope='module')
def recipe(lab): return Recipe('svm', source=str(lab/'phantoms'), size=24, arch='svm', policy='none', cache=False, model_kwargs=OPTIONS)

@pytest.fixture(scope='module')
def fitted(recipe, index): return fit_svm(recipe, index)

@pytest.fixture(scope='module')
def saved(fitted, index, tmp_path_factory):
    svm,record = fitted
    return save_sklearn(svm, tmp_path_factory.mktemp('svm')/'svm', svm.classes_.tolist(), PIXELS, index, record)

PIXELS = dict(size=24, method='squash', mode='L')

def _edit(recipe, **kw): return Recipe(**{**vars(recipe), **kw})

def _rows(paths, size=24): return flat_pixels(np.stack([load_image(p, size) for p in paths])[:,None])

def test_search_fits_everything_within_the_folds():
    "A `GridSearchCV` over the plain pipeline, with one grid a kernel"
    s = svm_search(7, cs=(1,2), gammas=(.1,.2,.3), cv=4)
    assert [n for n,_ in s.estimator.steps] == ['pca','scale','svm'] and s.cv.n_splits == 4
    assert sorted(len(g['svm__C'])*len(g.get('svm__gamma', [0])) for g in s.param_grid) == [2, 6]

def test_record_has_the_keys_of_a_network(fitted, index, lab, tmp_path):
    _,record = fitted
    net = train(Recipe('n', source=str(lab/'phantoms'), size=16, arch='test_resnet', epochs=1, bs=32, cache=False), index, path=tmp_path, bar=False)[1]
    assert set(net) <= set(record) and set(net['training']) <= set(record['training'])
    t = json.loads(json.dumps(record))['training']
    assert len(t['grid']) == 2*(2+2) and t['best_score'] == max(g['mean'] for g in t['grid'])
    assert (t['grid_n'],t['fit_n']) == (120, int((index.split=='train').sum()))
    assert t['best'].items() <= max(t['grid'], key=lambda g: g['mean']).items()

def test_parameters_are_the_stored_numbers(fitted):
    svm,record = fitted
    n,d,k = sum(record['training']['n_support']),record['training']['best']['n_components'],6
    assert record['training']['parameters'] == n*d + n*(k-1) + k*(k-1)//2 + 24*24*(d+1) + 2*d + 2*k

def test_same_recipe_same_answers(recipe, index, fitted):
    again,rec = fit_svm(recipe, index)
    x = _rows(index.path[index.split=='test'])
    assert rec['training']['grid'] == fitted[1]['training']['grid']
    assert np.abs(again.predict_proba(x)-fitted[0].predict_proba(x)).max() < 1e-9

def test_folder_holds_no_pickle_and_no_weights(saved):
    assert {p.name for p in saved.path.iterdir()} == {'config.json','model.onnx','README.md'}
    c = saved.config
    assert (c['architecture'],c['num_classes'],saved.info['library'],saved.info['format']) == ('svm',6,'scikit-learn',1)
    assert not any(k in (saved.path/'model.onnx').read_bytes() for k in (b'sklearn', b'site-packages', str(Path.cwd()).encode()))
    card = (saved.path/'README.md').read_text()
    assert 'scikit-learn pipeline' in card and 'timm.create_model` cannot' in card and 'library_name: sklearn' in card

def test_graph_gives_what_the_pipeline_gives(saved, fitted, index):
    svm,paths = fitted[0],list(index.path)
    probs,embeddings,errors = predict_files(paths, saved.path, batch_size=7)
    x = _rows(paths)
    assert probs.dtype==embeddings.dtype==np.float32 and not any(errors)
    assert np.abs(probs-svm.predict_proba(x)).max() < 1e-4 and np.abs(probs.sum(1)-1).max() < 1e-5
    assert [saved.labels[i] for i in probs.argmax(1)] == svm.predict(x).tolist()
    np.testing.assert_allclose(embeddings, svm[:-1].transform(x), atol=1e-3)

def test_a_folder_is_sorted_as_the_pipeline_says(saved, fitted, phantom_files, tmp_path):
    from mednist_fastai.sort import classify_folder
    src = tmp_path/'in'; src.mkdir()
    for i,p in enumerate(phantom_files[::5]): shutil.copy(p, src/f'{i:03}.png')
    (src/'broken.png').write_bytes(b'no image')
    df = classify_folder(src, tmp_path/'out', saved.path, progress=False)
    assert Counter(df.status)['sorted'] == 60 and len(df) == 61
    files = sorted(p for p in src.iterdir() if p.stem!='broken')
    want = dict(zip((p.name for p in files), fitted[0].predict(_rows(files))))
    for name,label in want.items(): assert (tmp_path/'out'/label/name).exists(), (name, label)

def test_inference_needs_no_scikit_learn(saved, phantom_files):
    code = ('import sys; sys.modules.update(sklearn=None, skl2onnx=None, onnx=None, torch=None)\n'
            'from mednist_fastai.infer import predict_files; print(predict_files(sys.argv[2:], sys.argv[1])[0].shape)')
    out = subprocess.run([sys.executable, '-c', code, saved.path, *phantom_files[:3]], capture_output=True, text=True)
    assert out.stdout.strip()=='(3, 6)', out.stderr

@pytest.mark.parametrize('file', ['config.json','model.onnx','README.md'])
def test_damage_is_detected(saved, tmp_path, file):
    copy = shutil.copytree(saved.path, tmp_path/'copy')
    whole = (copy/file).read_bytes()
    (copy/file).write_bytes(whole.replace(b'CXR', b'CXQ') if file!='model.onnx' else whole[:500] + bytes([whole[500]^1]) + whole[501:])
    with pytest.raises(LearnerDamagedError, match=file): open_learner(copy)
    (copy/file).unlink()
    with pytest.raises(Exception, match=file): open_learner(copy)

def test_a_network_without_weights_stays_damaged(tiny, tmp_path):
    "Neither by losing the file nor by calling itself a scikit-learn learner does a network get away without its weights"
    copy = shutil.copytree(tiny, tmp_path/'copy')
    (copy/FILES[0]).unlink()
    with pytest.raises(LearnerDamagedError, match='model.safetensors'): open_learner(copy)
    c = json.loads((copy/'config.json').read_text())
    c['mednist_fastai']['library'] = 'scikit-learn'
    (copy/'config.json').write_text(json.dumps(c))
    with pytest.raises(LearnerDamagedError, match='config.json was changed'): open_learner(copy)

def test_what_cannot_be_saved(saved, fitted, index, tmp_path):
    svm,labels = fitted[0],fitted[0].classes_.tolist()
    with pytest.raises(LearnerExistsError): save_sklearn(svm, saved.path, labels, PIXELS, index)
    for bad in ((svm, labels[::-1], PIXELS), (svm, labels[:-1], PIXELS), (svm, labels, dict(PIXELS, mode='RGB')), (svm['svm'], labels, PIXELS),
                (svm[:-1], labels, PIXELS)):
        with pytest.raises(LearnerFormatError): save_sklearn(bad[0], tmp_path/'x', bad[1], bad[2], index)
    assert list(tmp_path.iterdir()) == []

def test_a_graph_that_disagrees_is_refused(saved, recipe, index):
    other = fit_svm(_edit(recipe, model_kwargs=dict(OPTIONS, fit_n=60)), index)[0]
    x = np.stack([load_image(p, 24) for p in index.path[:64]])[:,None]
    with pytest.raises(LearnerCheckError, match='scikit-learn'): check_sklearn(other, saved.graph, x)

@pytest.mark.parametrize('kw,says', [
    (dict(task='multi_label'), 'multi_label'), (dict(weights='hub'), 'weights'), (dict(epochs=9), 'epochs'), (dict(policy='ct'), 'policy'),
    (dict(model_kwargs=dict(kernel='poly')), 'kernel'), (dict(model_kwargs=dict(cv=1)), 'cv'), (dict(model_kwargs=dict(n_components='many')), 'n_components'),
    (dict(model_kwargs=dict(cs=[])), 'cs'), (dict(model_kwargs=dict(gammas=[-1])), 'gammas'), (dict(model_kwargs=dict(grid_n=3)), 'fewer'),
    (dict(model_kwargs=dict(OPTIONS, grid_n=12)), 'folds'), (dict(model_kwargs=dict(n_components=5000)), 'n_components'), (dict(arch='resnet34'), 'train')])
def test_recipe_errors(recipe, index, kw, says):
    with pytest.raises(DataError, match=says): fit_svm(_edit(recipe, **kw), index)

def test_the_two_ways_point_at_each_other(recipe, index, saved):
    with pytest.raises(DataError, match='fit_svm'): train(recipe, index)
    with pytest.raises(WeightsError, match='holds a svm'): create_backbone('test_resnet', 6, weights=saved.path)

def test_a_run_is_finished_once(recipe, index, tmp_path, monkeypatch):
    recipe.save(tmp_path/'r.json')
    assert Recipe.load(tmp_path/'r.json') == recipe
    rec = run(recipe, tmp_path/'run', df=index)
    assert {'recipe.json','record.json','predictions.csv','errors.png','learner'} == {p.name for p in (tmp_path/'run').iterdir()}
    assert evaluate(tmp_path/'run/learner', index).metrics['errors'] == rec['metrics'][0]['errors'] < 15
    assert '| random test' in (tmp_path/'run/learner/README.md').read_text()
    import mednist_fastai.evaluate as m
    monkeypatch.setattr(m, 'fit_svm', lambda *a: pytest.fail('fitted again'))
    assert run(recipe, tmp_path/'run', df=index) == json.loads(json.dumps(rec))
    with pytest.raises(DataError, match='another recipe'): run(_edit(recipe, seed=1), tmp_path/'run', df=index)

def test_the_command_trains_it(recipe, tmp_path):
    _edit(recipe, model_kwargs=dict(OPTIONS, n_components=8, cs=[1])).save(tmp_path/'svm.json')
    cmd = Path(sys.executable).parent/'mednist-train'
    out = subprocess.run([cmd, '--recipe', tmp_path/'svm.json', '--out', tmp_path/'run', '--quiet'], capture_output=True, text=True, timeout=300)
    assert out.returncode==0 and 'errors of' in out.stdout, out.stderr
    assert open_learner(tmp_path/'run/learner').config['architecture'] == 'svm'

@pytest.mark.parametrize('mode,classes', [('RGB',6), ('L',2), ('L',3)])
def test_colours_and_few_classes(recipe, index, tmp_path, mode, classes):
    df = index[index.label.isin(sorted(set(index.label))[:classes])].reset_index(drop=True)
    df.attrs = index.attrs
    rec = run(_edit(recipe, mode=mode, size=16), tmp_path/'run', df=df)
    lf = open_learner(tmp_path/'run/learner')
    probs,_,_ = predict_files(df.path, lf)
    assert (lf.channels,probs.shape[1]) == (3 if mode=='RGB' else 1, classes) and lf.info['check']['max_difference'] < 1e-3
    assert rec['metrics'][0]['accuracy'] > .6

def test_the_cache_changes_nothing(recipe, index, fitted, tmp_path, monkeypatch):
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    cached = fit_svm(_edit(recipe, cache=True), index)[1]
    assert cached['training']['grid'] == fitted[1]['training']['grid']

def test_it_finds_similar_images(saved, lab, tmp_path):
    "Its features before the classifier are vectors as those of a network are"
    pytest.importorskip('faiss')
    from mednist_fastai.search import SearchIndex
    ix = SearchIndex.create(tmp_path/'index', saved)
    files = sorted((lab/'phantoms').glob('Hand/*.png'))[:5] + sorted((lab/'phantoms').glob('CXR/*.png'))[:5]
    for f in files: (tmp_path/'in'/f.parent.name).mkdir(parents=True, exist_ok=True); shutil.copy(f, tmp_path/'in'/f.parent.name)
    assert ix.index(tmp_path/'in').added==10
    rows = ix.rows(range(10))
    e = predict_files(rows.path, saved)[1]
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    assert ix.config['dim']==e.shape[1]!=96
    assert ix.similar(rows.path[0], 9).path.tolist()==rows.path[np.argsort(-e@e[0])[1:]].tolist()
