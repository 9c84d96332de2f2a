"The learner that ships in the package, and the recipe of several sources that made it"
import os, shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pandas as pd
import pytest
from mednist_fastai import open_learner
from mednist_fastai.data import DATA_ENV, DataNotFoundError, get_index, make_split
from mednist_fastai.evaluate import evaluate
from mednist_fastai.learner import shipped_learner
from mednist_fastai.phantom import make_phantoms
from mednist_fastai.render import RENDERINGS, make_renderings
from mednist_fastai.train import Recipe, recipe_index, sources_index

root = Path(__file__).resolve().parents[1]
CLASSES = ['AbdomenCT','BreastMRI','CXR','ChestCT','Hand','HeadCT']

def test_it_is_small_whole_and_says_what_it_is():
    lf = open_learner()
    assert lf.path==shipped_learner() and lf.labels==CLASSES
    assert sum(p.stat().st_size for p in lf.path.iterdir()) < 4*2**20
    card = (lf.path/'README.md').read_text(encoding='utf-8')
    assert 'license: cc-by-sa-4.0' in card and 'Erickson' in card and 'medical device' in card
    assert card.index('Images from elsewhere') < card.index('## Figures'), 'the honest figures come first'

def test_nothing_unshippable_was_trained_on():
    hold = set(open_learner().info['record']['recipe']['hold'])
    assert {'duke10','duke153','shsnet','kitamura'} <= hold

def test_timm_opens_it():
    import timm, torch
    net = timm.create_model(f'local-dir:{shipped_learner()}', pretrained=True).eval()
    assert net(torch.zeros(2,1,64,64)).shape==(2,6)

def test_sorting_needs_no_learner(tmp_path):
    df = make_phantoms(tmp_path/'phantoms', n=20, seed=77)
    for i,p in enumerate(df.path): (tmp_path/'inbox').mkdir(exist_ok=True); shutil.copy(p, tmp_path/f'inbox/{i:03}.png')
    code = "import sys; from mednist_fastai import classify_folder; classify_folder('inbox', 'sorted', progress=False); assert not {'torch','fastai','timm'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True)
    got = pd.read_csv(tmp_path/'sorted/report.csv').sort_values('path').label.values
    assert (got==df.label.values).mean() >= .95

def test_the_card_says_what_one_measures_again():
    if not os.getenv(DATA_ENV): pytest.skip(f'{DATA_ENV} names no folder with MedNIST')
    try: df = make_split(get_index('mednist'), 'random', seed=0)
    except DataNotFoundError as e: pytest.skip(str(e))
    told = next(m for m in open_learner().info['metrics'] if m['source']=='mednist' and m['split'].startswith('random test'))
    assert evaluate(None, df).metrics['errors']==told['errors']

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('two')
    for k,s in (('a',1),('b',2)):
        make_phantoms(tmp/k, n=12, seed=s)
        (tmp/k/'SYNTHETIC.md').unlink() # so that each is a source by its folder's name
    return tmp

def test_what_is_held_out_is_in_no_rendering(two, monkeypatch, tmp_path):
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    monkeypatch.setattr('mednist_fastai.train.PHANTOMS', 3)
    seen = []
    monkeypatch.setattr('mednist_fastai.train.make_renderings', lambda dst, df, **kw: seen.append(df) or make_renderings(dst, df, **kw))
    recipe = Recipe('x', source=f'{two/"a"}+{two/"b"}+rendering', hold=['b'])
    df = recipe_index(recipe)
    assert set(df.source)=={'a','b','rendering'} and set(df.split[df.source=='b'])=={'test'} and set(df.split[df.source=='rendering'])=={'train'}
    assert set(seen[0].source)=={'a'} and set(seen[0].split)=={'train'}
    assert recipe_index(recipe).attrs['split']['digest']==df.attrs['split']['digest']
    recipe_index(replace(recipe, hold=[]))
    assert set(seen[-1].source)=={'a','b'}

def test_renderings_are_the_same_twice(two, tmp_path):
    df = get_index(two/'a')
    one,again = (make_renderings(tmp_path/k, df, n=4) for k in 'xy')
    assert len(one)==len(again)>=8
    for p,q in zip(one.path, again.path): assert Path(p).read_bytes()==Path(q).read_bytes()
    assert set(one.label) <= {l for ls in RENDERINGS.values() for l in ls}

def test_a_label_for_a_whole_source(two):
    df = sources_index(f'{two/"a"}+{two/"b"}:Hand')
    assert set(df.label[df.source=='b'])=={'Hand'} and set(df.label[df.source=='a'])==set(CLASSES) and set(df.split)=={''}

def test_recipes_of_the_studies_are_whole():
    files = sorted((root/'nbs/experiments/recipes').glob('*.json'))
    assert len(files)>30
    for f in files: assert Recipe.load(f).name==f.stem
