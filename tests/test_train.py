"Training: recipes, callbacks, precision, and the same figures twice in two processes"
import json, subprocess, sys
import pandas as pd
import pytest
torch = pytest.importorskip('torch')
from mednist_fastai.blocks import UnreadableImagesError, drop_unreadable, index_dls, index_rows, pixel_cache
from mednist_fastai.data import DataError, get_index, make_split
from mednist_fastai.evaluate import evaluate, run
from mednist_fastai.learner import open_learner, save_learner
from mednist_fastai.train import OPTIMISERS, Autocast, DivergedError, Recipe, class_weights, timm_learner, train

@pytest.fixture(scope='module')
def index(lab): return make_split(get_index(lab/'phantoms'), 'random', seed=0)

@pytest.fixture
def recipe(lab): return Recipe('t', source=str(lab/'phantoms'), size=32, arch='test_resnet', epochs=2, lr=5e-3, bs=32, cache=False)

def _edit(recipe, **kw): return Recipe(**{**vars(recipe), **kw})

def test_same_figures_in_two_processes(recipe, tmp_path):
    recipe.save(tmp_path/'r.json')
    code = 'import sys,json,warnings; warnings.simplefilter("ignore"); from mednist_fastai.train import *; print(json.dumps(train(Recipe.load(sys.argv[1]), path=sys.argv[2], bar=False)[1]["training"]["epochs"]))'
    a,b = (subprocess.run([sys.executable, '-c', code, tmp_path/'r.json', tmp_path], capture_output=True, text=True, check=True).stdout.splitlines()[-1] for _ in range(2))
    assert json.loads(a) == json.loads(b)

def test_cached_batches_equal_uncached(index, tmp_path):
    cache = pixel_cache(index, 48, 'pad', folder=tmp_path)
    dls = [index_dls(index, 48, bs=16, policy='none', method='pad', cache=c) for c in (None, cache)]
    for (x,y),(u,v) in zip(dls[0].valid, dls[1].valid): assert torch.equal(x, u) and torch.equal(y, v)

def test_a_replaced_file_makes_another_cache(index, tmp_path):
    import shutil
    df = index.head(6).copy(); df.attrs = index.attrs
    first = pixel_cache(df, 16, folder=tmp_path)
    shutil.copy(df.path[5], tmp_path/'x.png')
    df.loc[0,'path'] = str(tmp_path/'x.png')
    df.attrs = {**df.attrs, 'root':'/'}
    assert pixel_cache(df, 16, folder=tmp_path).file != first.file

def test_bad_files_are_all_named(index, tmp_path):
    df = index.head(8).copy()
    for i in (2,5): (tmp_path/f'{i}.png').write_bytes(b'x'*i); df.loc[i,'path'] = str(tmp_path/f'{i}.png')
    df.attrs = {**index.attrs, 'root':'/'}
    with pytest.raises(UnreadableImagesError) as e: pixel_cache(df, 16, folder=tmp_path)
    assert len(e.value.errors)==2 and not list(tmp_path.rglob('*.npy'))
    assert len(drop_unreadable(df, e.value)) == 6

@pytest.mark.parametrize('mode,channels', [('L',1),('RGB',3)])
def test_channels(index, mode, channels, tmp_path):
    dls = index_dls(index, 32, bs=8, mode=mode, policy='endoscopy' if mode=='RGB' else 'ct')
    learn = timm_learner(dls, 'test_resnet')
    assert dls.one_batch()[0].shape == (8,channels,32,32)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    lf = save_learner(learn, tmp_path/'l')
    assert (lf.channels,lf.mode) == (channels,mode)
    assert evaluate(lf, index).metrics['n'] == (index.split=='test').sum()

def test_callbacks_of_a_recipe(recipe, index, tmp_path):
    "A learning rate that destroys: training stops early, and the best epoch is kept"
    r = _edit(recipe, epochs=12, lr=3., save_best=True, stop_after=1, reduce_lr_after=1)
    learn,rec = train(r, index, path=tmp_path, bar=False)
    epochs = rec['training']['epochs']
    assert len(epochs) < 12
    best = min(e['valid_loss'] for e in epochs)
    with learn.no_bar(): assert abs(learn.validate()[0]-best) < 1e-3*max(1, best)
    assert list(pd.read_csv(tmp_path/'history.csv').columns)[:3] == ['epoch','train_loss','valid_loss']

def test_in_domain_transfer_freezes_the_body_first(recipe, index, tmp_path):
    learn,_ = train(recipe, index, path=tmp_path, bar=False)
    lf = save_learner(learn, tmp_path/'first')
    dls = index_dls(index[index.label.isin(['CXR','Hand'])].reset_index(drop=True), 32, bs=8)
    tuned = timm_learner(dls, 'test_resnet', weights=lf.path)
    before = {k:v.clone() for k,v in tuned.model.state_dict().items()}
    assert torch.equal(before['layer1.0.conv1.weight'], learn.model.state_dict()['layer1.0.conv1.weight'])
    with tuned.no_bar(), tuned.no_logging(): tuned.fit(1, 1e-2) # frozen, as `fine_tune` begins
    after = tuned.model.state_dict()
    assert torch.equal(before['layer1.0.conv1.weight'], after['layer1.0.conv1.weight']) and not torch.equal(before['fc.weight'], after['fc.weight'])
    tuned.unfreeze()
    with tuned.no_bar(), tuned.no_logging(): tuned.fit(1, 1e-2)
    assert not torch.equal(before['layer1.0.conv1.weight'], tuned.model.state_dict()['layer1.0.conv1.weight'])

def test_a_recipe_says_how_much_lower_the_rate_of_the_body_is(recipe, index, tmp_path):
    learn,_ = train(_edit(recipe, epochs=1), index, path=tmp_path, bar=False)
    lf = save_learner(learn, tmp_path/'first')
    for mult in (100., 4.):
        body,head = train(_edit(recipe, epochs=1, weights=str(lf.path), lr_mult=mult), index, path=tmp_path, bar=False)[0].opt.hypers
        assert head['lr']/body['lr']==pytest.approx(mult)

def test_class_weights_follow_the_train_counts(index):
    df = index.drop(index[(index.label=='Hand') & (index.split=='train')].index[10:]).reset_index(drop=True)
    dls = index_dls(df, 16, bs=8)
    w = dict(zip(dls.vocab, class_weights(dls).tolist()))
    n = df[df.split=='train'].label.value_counts()
    assert abs(sum(w.values())/6-1) < 1e-6 and abs(w['Hand']/w['CXR'] - n['CXR']/n['Hand']) < 1e-5

def test_autocast_runs_in_bfloat16_and_cleans_up():
    seen = []
    class Net(torch.nn.Linear):
        def forward(self, x):
            y = super().forward(x); seen.append(y.dtype)
            if x.sum()>1e6: raise RuntimeError('boom')
            return y
    net = Net(4, 2); Autocast(net, 'cpu')
    assert net(torch.ones(1,4)).dtype == torch.float32 and seen == [torch.bfloat16]
    with pytest.raises(RuntimeError, match='boom'): net(torch.full((1,4), 1e6))
    assert not torch.is_autocast_enabled('cpu')

@pytest.mark.parametrize('size,hooked', [(16,False), (32,True)])
def test_one_pixel_before_a_stride_is_trained_in_float32(index, monkeypatch, size, hooked):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: dict(avx512_bf16=True), raising=False)
    dls = index_dls(index, size, bs=32)
    learn = timm_learner(dls.to(torch.device('cpu')), 'test_resnet')
    assert bool(learn.model._forward_pre_hooks) is hooked

def test_unknown_names_are_refused_before_training(recipe, index, tmp_path):
    for kw in (dict(arch='resnet43'), dict(policy='x-ray')):
        with pytest.raises(ValueError): train(_edit(recipe, **kw), index, path=tmp_path, bar=False)
    with pytest.raises(DataError): train(_edit(recipe, source=str(tmp_path/'none')), path=tmp_path, bar=False)

def test_an_interrupted_run_is_finished_by_the_next(recipe, index, tmp_path, monkeypatch):
    "No record, no finished run: after a failure in measuring, the same call does the rest"
    import mednist_fastai.evaluate as m
    def boom(*a): raise KeyboardInterrupt
    with monkeypatch.context() as c, pytest.raises(KeyboardInterrupt):
        c.setattr(m, 'measure', boom)
        run(recipe, tmp_path/'run', df=index, bar=False, precisions=())
    assert not (tmp_path/'run/record.json').exists()
    with pytest.raises(DataError, match='another recipe'): run(_edit(recipe, epochs=1), tmp_path/'run', df=index, bar=False, precisions=())
    assert (tmp_path/'run/learner').exists()
    rec = run(recipe, tmp_path/'run', df=index, bar=False, precisions=())
    lf = open_learner(tmp_path/'run/learner')
    assert set(lf.info['precisions'])<={'float32'} # none was asked for
    assert lf.info['metrics'][0]['errors'] == rec['metrics'][0]['errors']
    (tmp_path/'theirs').mkdir(); (tmp_path/'run/learner').rename(tmp_path/'theirs/learner')
    with pytest.raises(DataError, match='not of this run'): run(recipe, tmp_path/'theirs', df=index, bar=False, precisions=())
    assert open_learner(tmp_path/'theirs/learner').labels

def test_fewer_images_than_a_batch_still_train(index, tmp_path):
    df = index.groupby('label').head(3).reset_index(drop=True).assign(split=['train','train','valid']*6)
    df.attrs = index.attrs
    dls = index_dls(df, 32, bs=64)
    assert len(dls.train)==1 and dls.one_batch()[0].shape[0]==12

def test_a_vision_transformer_trains_and_saves(index, tmp_path):
    "A network of fixed size, at another size than timm made it for"
    learn = timm_learner(index_dls(index, 48, bs=32), 'test_vit')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert evaluate(save_learner(learn, tmp_path/'vit'), index).metrics['unreadable'] == 0

def test_several_findings_train_and_save(index, tmp_path):
    "Sigmoid outputs, one a finding, alike in the Learner and in the saved folder"
    import numpy as np
    from mednist_fastai.infer import predict_files
    df = index.assign(label=[{'CXR':'Film|Lung','Hand':'Film','ChestCT':'Lung'}.get(l, '') for l in index.label])
    learn = timm_learner(index_dls(df, 32, bs=32, task='multi_label'), 'test_resnet')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    lf = save_learner(learn, tmp_path/'multi')
    probs,_,_ = predict_files(list(df.path[:8]), lf)
    with learn.no_bar(): want = learn.get_preds(dl=learn.dls.test_dl(index_rows(df[:8])))[0].numpy()
    assert (lf.task,lf.labels) == ('multi_label',['Film','Lung']) and np.abs(probs-want).max() < .02 # bfloat16 against float32

def test_a_network_of_the_literature_trains_by_its_recipe(recipe, index, tmp_path):
    "SGD, a constant rate, class weights, the stop rule; saved and measured like any other"
    r = _edit(recipe, arch='mednet', opt='sgd', schedule='constant', lr=.01, wd=0., bs=30, epochs=3, stop_ratio=1.2, weighted=True, policy='none')
    rec = run(r, tmp_path/'run', df=index, bar=False, precisions=())
    assert rec['metrics'][0]['n'] == (index.split=='test').sum()
    assert len({e['train_loss'] for e in rec['training']['epochs']}) == len(rec['training']['epochs'])
    code = 'import sys; from mednist_fastai.infer import Torch; from mednist_fastai.learner import open_learner; print(Torch(open_learner(sys.argv[1]), "cpu").precision)'
    res = subprocess.run([sys.executable, '-c', code, str(tmp_path/'run'/'learner')], capture_output=True, text=True) # a fresh process, whose timm knows its own networks only
    assert res.stdout=='float32\n', res.stderr
    with pytest.raises(DataError, match='optimiser'): train(_edit(r, opt='adamw'), index, path=tmp_path, bar=False)
    with pytest.raises(DataError, match='schedule'): train(_edit(r, schedule='cosine'), index, path=tmp_path, bar=False)

@pytest.mark.parametrize('opt,second', [('sgd',.19), ('plain_sgd',.1)])
def test_momentum_is_in_sgd_and_not_in_plain_sgd(opt, second):
    "With a gradient of 1 and a rate of 0.1, momentum 0.9 makes the second step 1.9 times the first"
    p = torch.nn.Parameter(torch.zeros(1))
    o = OPTIMISERS[opt]([p], lr=.1, wd=0.)
    for step in (.1,second):
        before,p.grad = p.item(),torch.ones(1)
        o.step()
        assert before-p.item() == pytest.approx(step)

def test_the_stop_rule_stops_and_a_fitting_network_goes_on(recipe, index, tmp_path):
    "Any ratio above a tiny limit stops after `stop_ratio_epochs`; a huge limit never does"
    n = [len(train(_edit(recipe, epochs=5, stop_ratio=s, stop_ratio_epochs=2), index, path=tmp_path, bar=False)[1]['training']['epochs']) for s in (1e-9, 1e9)]
    assert n == [2, 5]

def test_training_goes_on_from_a_learner_last_layer_included(recipe, index, tmp_path):
    "With no step taken, what comes out is what went in; other classes and another architecture are refused"
    first,_ = train(_edit(recipe, epochs=2), index, path=tmp_path, bar=False)
    save_learner(first, tmp_path/'first', precisions=())
    again,_ = train(_edit(recipe, epochs=1, lr=0., wd=0.), index, path=tmp_path, bar=False, start=tmp_path/'first')
    for (k,a),b in zip(first.model.named_parameters(), again.model.parameters()): assert torch.equal(a, b), k
    fewer = index[index.label!=index.label.iloc[0]].copy()
    fewer.attrs = index.attrs
    with pytest.raises(DataError, match='these classes only'): train(recipe, fewer, path=tmp_path, bar=False, start=tmp_path/'first')
    with pytest.raises(DataError, match='this architecture'): train(_edit(recipe, arch='mednet'), index, path=tmp_path, bar=False, start=tmp_path/'first')

@pytest.mark.parametrize('kw', [dict(opt='sgd', schedule='constant'), dict(ema=.9), dict(save_best=True)], ids=str)
def test_a_training_that_runs_away_says_so(recipe, index, tmp_path, kw):
    "One line, whatever else hangs on the training; nothing is saved"
    with pytest.raises(DivergedError, match='^the loss is [^\n]* lower learning rate [^\n]*$'): run(_edit(recipe, lr=1e9, **kw), tmp_path/'run', df=index, bar=False)
    assert not (tmp_path/'run/learner').exists() and not (tmp_path/'run/record.json').exists()

def test_weights_that_run_away_in_the_second_part_of_fine_tuning(recipe, index, tmp_path):
    learn,_ = train(_edit(recipe, epochs=1), index, path=tmp_path, bar=False)
    lf = save_learner(learn, tmp_path/'first', precisions=())
    with pytest.raises(DivergedError): train(_edit(recipe, epochs=1, weights=str(lf.path), lr=1e9, lr_mult=1.), index, path=tmp_path, bar=False)
