"""Strangers: from a recipe with images of no class to a sorted folder that refuses them"""
import json
import numpy as np, pytest
from dataclasses import replace
from mednist_fastai.data import DataError
from mednist_fastai.phantom import make_phantoms
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
    record = run(recipe, tmp_path/'run', bar=False)
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
