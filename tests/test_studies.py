"The studies of pneumonia, findings and endoscopy at reduced scale: each committed recipe from files to a sorted folder, on real images where they are here"
import shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
from mednist_fastai.data import DataNotFoundError, get_index, index_digest, make_split
from mednist_fastai.learner import PRECISIONS, open_learner
from mednist_fastai.phantom import make_phantoms
from mednist_fastai.sort import read_report
from mednist_fastai.sources import make_findings
from mednist_fastai.train import Recipe, recipe_dls, recipe_learner

recipes = Path(__file__).parents[1]/'nbs'/'experiments'/'recipes'
def load(name, **kw): return replace(Recipe.load(recipes/f'{name}.json'), epochs=1, bs=8, **kw)

def some(df, n, seed=0):
    "About `n` images of each part, dealt over the labels"
    return df.sample(frac=1, random_state=seed).groupby(['split','label']).head(max(1, n//df.label.nunique())).sort_values('path').reset_index(drop=True)

@pytest.fixture(scope='module')
def chests(tmp_path_factory):
    "Radiographs of two classes with an official split; phantoms of two classes where there are none"
    try: df = get_index('chest_xray')
    except DataNotFoundError:
        df = make_phantoms(tmp_path_factory.mktemp('chests')/'p', n=60)
        df = df[df.label.isin(['CXR','Hand'])].reset_index(drop=True)
        df['split'] = ['test' if i%4==0 else 'train' for i in range(len(df))]
        return make_split(df, 'official')
    return keep_attrs(make_split(df, 'official'), lambda d: some(d, 40))

def keep_attrs(df, f):
    "A part of an index, with a digest of its own"
    out = f(df)
    out.attrs = df.attrs | dict(digest=index_digest(out))
    return out

@pytest.fixture(scope='module')
def findings(tmp_path_factory):
    "Radiographs with findings, by patient; drawn ones where there are none"
    try: df = make_split(get_index('nih_cxr'), 'grouped')
    except DataNotFoundError: return make_split(make_findings(tmp_path_factory.mktemp('findings')/'f', n=150), 'grouped')
    return keep_attrs(df, lambda d: d.groupby('split').head(80).reset_index(drop=True))

@pytest.fixture(scope='module')
def colour(tmp_path_factory):
    "Colour images of eight classes; endoscopy phantoms where there are none"
    try: df = get_index('pbc8')
    except DataNotFoundError: df = make_phantoms(tmp_path_factory.mktemp('colour')/'c', n=20, kind='endoscopy')
    return keep_attrs(make_split(df, 'random', valid=.2, test=.2), lambda d: some(d, 48))

def sort(df, learner, dst, *more):
    "All images of an index through the command, under names that tell nothing; a learner of one epoch is sure of little, so nothing but a flaw of the picture sends a file to review"
    (dst/'inbox').mkdir(parents=True)
    for i,p in enumerate(df.path): shutil.copy(p, dst/'inbox'/f'{i:04}{Path(p).suffix}')
    res = subprocess.run([str(Path(sys.executable).with_name('mednist-sort')), str(dst/'inbox'), str(dst/'sorted'), str(learner), '--quiet', '--min-confidence', '0', '--strangers', 'sort', *more], capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    report = read_report(dst/'sorted')
    assert len(report)==len(df) and set(report.status)<={'sorted','review'}
    flagged = report.doubts.fillna('')!=''
    assert ((report.status=='review')==flagged).all() and flagged.mean()<.2 and not report.doubts.fillna('').str.contains('unsure|stranger').any()
    assert sorted(Path(p).name for p in report.path)==sorted(p.name for p in (dst/'inbox').iterdir())
    return report

def run_small(recipe, df, out, precisions=()):
    from mednist_fastai.evaluate import run
    record = run(recipe, out, df=df, bar=False, precisions=precisions)
    assert [m['split'] for m in record['metrics']] and {m['n'] for m in record['metrics']}<={int(n) for n in df.split.value_counts()}
    assert Recipe(**record['recipe'])==recipe and record['training']['parameters']>0
    return record

def test_pneumonia(chests, tmp_path):
    recipe = load('pneumonia-cnn')
    assert (recipe.arch, recipe.size, recipe.policy, recipe.save_best, recipe.split)==('pneumonia_cnn', 150, 'zoom_flip', True, 'official')
    record = run_small(replace(recipe, size=64), chests, tmp_path/'run')
    test = chests[chests.split=='test']
    report = sort(test, tmp_path/'run'/'learner', tmp_path/'box')
    assert int((report.label.values!=test.label.values).sum())==record['metrics'][0]['errors'] # the command decides as `run` measured

def test_findings(findings, tmp_path):
    recipe = load('findings-mobilenetv2', size=64)
    assert recipe.task=='multi_label' and recipe.split=='grouped' and recipe.weighted
    record = run_small(recipe, findings, tmp_path/'run')
    lf = open_learner(tmp_path/'run'/'learner')
    labels = lf.labels
    assert len(lf.thresholds)==len(labels) and {f['label'] for f in record['metrics'][0]['findings']}==set(labels)
    report = sort(findings[findings.split=='test'], lf.path, tmp_path/'box', '--per-finding', 'link')
    p = report[[f'p_{l}' for l in labels]].values
    for i,r in enumerate(report.itertuples()):
        if r.status=='review': continue
        called = {l for l,hit in zip(labels, p[i]>=np.asarray(lf.thresholds)-5e-7) if hit}
        assert set(r.label.split('|'))-{'','No Finding'}==called
        for l in called: assert (tmp_path/'box'/'sorted'/l/Path(r.path).name).exists()

def test_endoscopy_grows(colour, tmp_path):
    "By the recipes but for the network: saving and checking one of this size twice takes minutes"
    small = load('endoscopy-resnet34', size=32)
    assert (small.arch, small.mode, small.policy)==('resnet34', 'RGB', 'endoscopy')
    run_small(replace(small, arch='test_resnet'), colour, tmp_path/'small')
    large = load('endoscopy-resnet34-large', size=48, arch='test_resnet')
    assert large.weights=='runs/endoscopy-resnet34/learner' # progressive resizing: it starts from the smaller one
    record = run_small(replace(large, weights=str(tmp_path/'small'/'learner')), colour, tmp_path/'large', PRECISIONS)
    test = colour[colour.split=='test']
    report = sort(test, tmp_path/'large'/'learner', tmp_path/'box')
    assert int((report.label.values!=test.label.values).sum())==record['metrics'][0]['errors']

def learns_a_batch(recipe, df, path):
    import torch
    learn = recipe_learner(recipe, recipe_dls(recipe, df), path)
    x,y = learn.dls.one_batch()
    learn.model.train()
    loss = learn.loss_func(learn.model(x), y)
    loss.backward()
    assert torch.isfinite(loss) and next(learn.model.parameters()).grad.abs().sum()>0
    return y,learn.dls.vocab

@pytest.mark.parametrize('name', ['xception','resnetv2_50','inception_v3','densenet121'])
def test_every_backbone_learns_a_batch(findings, name, tmp_path):
    y,vocab = learns_a_batch(load(f'findings-{name}', size=80), findings, tmp_path) # Inception takes no less than 75 pixels
    assert y.shape[1]==len(vocab)

@pytest.mark.parametrize('name', ['resnet34','resnet50'])
def test_networks_of_endoscopy_learn_a_batch(colour, name, tmp_path):
    recipe = load(f'endoscopy-{name}', size=32)
    assert recipe.arch==name
    learns_a_batch(recipe, colour, tmp_path)

def test_recipes_of_the_three_studies():
    names = {p.stem for p in recipes.glob('*.json')}
    assert {f'findings-{n}' for n in ('xception','resnetv2_50','inception_v3','mobilenetv2','densenet121')}<=names
    same = {(r.size, r.epochs, r.lr, r.policy, r.bs) for p in recipes.glob('findings-*.json') for r in [Recipe.load(p)]}
    assert len(same)==1 # one recipe for all backbones
