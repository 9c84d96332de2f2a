"Several findings an image: targets, masked loss, thresholds, figures by patient, and the whole way from a recipe to a measured learner"
import hashlib, json, shutil
import matplotlib; matplotlib.use('Agg')
import numpy as np, pandas as pd
import pytest
torch = pytest.importorskip('torch')
from sklearn import metrics as skm
from mednist_fastai.blocks import index_dls, index_rows, index_targets, keep_findings
from mednist_fastai.data import DataError, make_split, relative_paths
from mednist_fastai.evaluate import Evaluation, FindingsEvaluation, bootstrap_scores, compare, draws_interval, evaluate, run
from mednist_fastai.infer import predict_files
from mednist_fastai.interpret import LearnerInterpretation, finding_losses, findings_confusion, findings_report, findings_table, wilson
from mednist_fastai.learner import STRANGERS, LearnerDamagedError, LearnerFormatError, open_learner, save_learner, set_thresholds, set_trust
from mednist_fastai.sources import make_findings
from mednist_fastai.train import MaskedBCE, Recipe, finding_scores, positive_weights, recipe_index, timm_learner, train
from mednist_fastai.trust import fit_thresholds, thresholds_rule

NAMES = ['Cardiomegaly','Pleural Effusion','Support Devices']
nan = float('nan')

@pytest.fixture(scope='module')
def chests(tmp_path_factory): return make_split(make_findings(tmp_path_factory.mktemp('chests')/'c', n=500), 'grouped', valid=.2, test=.25)

@pytest.fixture(scope='module')
def done(chests, tmp_path_factory):
    "A finished run: (folder, recipe, index, record)"
    out,df = tmp_path_factory.mktemp('run')/'run',keep_findings(chests, NAMES)
    recipe = Recipe('chests', task='multi_label', findings=NAMES, size=32, arch='test_resnet', policy='none', epochs=8, lr=1e-2, bs=16, cache=False, weighted=True)
    return out,recipe,df,run(recipe, out, df=df, bar=False)

# --- targets

def test_targets_by_policy(chests):
    "Known targets are alike under every policy; uncertain ones are as defined, drawn by file and finding"
    labels = sorted({f for o in (*chests.label, *chests.uncertain) for f in o.split('|') if f})
    t = {p:index_targets(chests, labels, p) for p in ('ignore','ones','zeros','smooth')}
    unsure = np.array([[l in u.split('|') for l in labels] for u in chests.uncertain])
    assert unsure.sum() > 50 and (np.isnan(t['ignore'])==unsure).all()
    want = np.array([[l in o.split('|') for l in labels] for o in chests.label])
    for o in t.values(): assert o.dtype==np.float32 and (o[~unsure]==want[~unsure]).all()
    assert (t['ones'][unsure]==1).all() and (t['zeros'][unsure]==0).all()
    s = t['smooth'][unsure]
    assert .55 <= s.min() < .6 and .8 < s.max() <= .85 and abs(s.mean()-.7) < .03
    assert (index_targets(chests[::-1], labels, 'smooth')==t['smooth'][::-1]).all()

def test_smooth_targets_do_not_depend_on_the_machine(chests, tmp_path):
    "The same files under another root get the same draws"
    root = tmp_path/'moved'
    shutil.copytree(chests.attrs['root'], root)
    moved = chests.assign(path=[str(root/r) for r in relative_paths(chests)])
    moved.attrs = {**chests.attrs, 'root':str(root)}
    labels = sorted({f for o in (*chests.label, *chests.uncertain) for f in o.split('|') if f})
    assert np.array_equal(index_targets(moved, labels, 'smooth'), index_targets(chests, labels, 'smooth'))

@pytest.mark.parametrize('policy,value', [('ignore',nan), ('ones',1), ('zeros',0), ('smooth',.7)])
def test_policies_are_for_training_rows(chests, policy, value):
    dls = index_dls(chests, 16, bs=32, task='multi_label', uncertain=policy, policy='none')
    rows = chests[chests.split=='train']
    y = np.concatenate([y.numpy() for _,y in dls.train.new(shuffle=False, drop_last=False)])
    v = np.concatenate([y.numpy() for _,y in dls.valid])
    assert np.array_equal(y, index_targets(rows, list(dls.vocab), policy), equal_nan=True)
    assert np.array_equal(v, index_targets(chests[chests.split=='valid'], list(dls.vocab)), equal_nan=True)
    assert np.isnan(y).any() == (policy=='ignore') and np.isnan(v).any()

def test_images_without_findings_and_index_without_uncertain(chests):
    df = chests.drop(columns='uncertain')
    dls = index_dls(df, 16, bs=8, task='multi_label', policy='none')
    rows = df[df.label==''].head(3)
    assert len(rows)==3 and dls.test_dl(index_rows(rows), with_labels=True).one_batch()[1].abs().sum()==0
    for c in ('view','sex','age'): assert c in keep_findings(df, NAMES)

def test_findings_that_can_not_be_learned_are_named(chests):
    only_valid = chests.assign(label=[l if s=='train' else 'Hernia' for l,s in zip(chests.label, chests.split)])
    only_unsure = chests.assign(uncertain='Fracture')
    for df,name in ((only_valid,'Hernia'), (only_unsure,'Fracture')):
        with pytest.raises(DataError, match=name): index_dls(df, task='multi_label')
    with pytest.raises(DataError, match='maybe'): index_dls(chests, task='multi_label', uncertain='maybe')
    with pytest.raises(DataError, match='Spine'): keep_findings(chests, ['Spine'])
    with pytest.raises(DataError, match='alpha'): index_dls(chests, task='multi_label', alpha=.5)

# --- loss

@pytest.mark.parametrize('weight', [None, [2.,1.,5.]])
def test_masked_targets_have_no_influence(weight):
    "Whatever the network says where the target is masked: same loss, same gradients elsewhere, exactly none there"
    torch.manual_seed(0)
    y = torch.tensor([[1,0,nan],[nan,1,0],[0,nan,1],[nan,nan,nan]])
    known,loss,out = ~y.isnan(),MaskedBCE(weight),[]
    a = torch.randn(4, 3)
    for b in (a, torch.where(known, a, a*-50), torch.where(known, a, torch.full_like(a, 1e4))):
        x = b.clone().requires_grad_()
        l = loss(x, y); l.backward()
        out.append((l.item(), x.grad))
        assert (x.grad[~known]==0).all()
    for l,g in out[1:]: assert l==out[0][0] and torch.equal(g, out[0][1])
    pw = None if weight is None else torch.tensor(weight).expand(4, 3)[known]
    want = torch.nn.functional.binary_cross_entropy_with_logits(a[known], y[known], pos_weight=pw)
    assert abs(out[0][0]-want.item()) < 1e-6

def test_a_batch_that_knows_nothing_has_no_gradient():
    net = torch.nn.Linear(4, 2)
    loss = MaskedBCE()(net(torch.randn(3, 4)), torch.full((3,2), nan))
    loss.backward()
    assert loss.item()==0 and net.weight.grad.abs().sum()==0

def test_masked_labels_do_not_reach_the_weights(chests, tmp_path):
    "Other findings in place of the masked ones: the index differs, the network does not"
    recipe = Recipe(task='multi_label', size=32, arch='test_resnet', epochs=1, bs=32, policy='none', cache=False)
    df = keep_findings(chests, NAMES)
    masks = [u if s=='train' else '' for u,s in zip(df.uncertain, df.split)]
    other = ['|'.join(sorted({*l.split('|'), *u.split('|')}-{''})) for l,u in zip(df.label, masks)] # present and unsure: unsure wins
    both = [df.assign(uncertain=masks), df.assign(uncertain=masks, label=other)]
    w = [train(recipe, o, path=tmp_path, bar=False)[0].model.state_dict() for o in both]
    assert (both[0].label!=both[1].label).sum() > 10 and all(torch.equal(w[0][k], w[1][k]) for k in w[0])

def test_positive_weights(chests):
    dls = index_dls(chests, 16, bs=8, task='multi_label', policy='none')
    t = index_targets(chests[chests.split=='train'], list(dls.vocab))
    want = [(t[:,k]==0).sum()/(t[:,k]==1).sum() for k in range(t.shape[1])]
    assert np.allclose(positive_weights(dls), want) and positive_weights(dls, cap=2.).max()==2

def test_fastai_sees_a_loss_it_knows(chests):
    "Activation, decoding, losses by item, and the two metrics"
    learn = timm_learner(index_dls(keep_findings(chests, NAMES), 16, bs=32, task='multi_label', policy='none'), 'test_resnet')
    with learn.no_bar(): p,y,d,l = learn.get_preds(with_loss=True, with_decoded=True)
    with learn.no_bar(): loss,auroc,ap = learn.validate()
    assert 0<p.min() and p.max()<1 and torch.equal(d, p>=.5) and l.shape==(len(p),) and not l.isnan().any()
    s = finding_scores(y, p)
    assert abs(auroc-np.nanmean(s[0]))<1e-6 and abs(ap-np.nanmean(s[1]))<1e-6
    assert np.allclose(l*len(NAMES), finding_losses(y, p).sum(1), atol=1e-4)

# --- figures of hand-made cases

T = np.array([[1,0,1],[0,1,nan],[1,1,0],[0,nan,0],[1,0,0],[0,0,1],[nan,nan,nan]])
P = np.array([[.9,.2,.4],[.6,.8,.9],[.7,.3,.3],[.2,.9,.3],[.3,.3,.6],[.1,.1,.4],[.5,.9,.1]])

def test_scores_and_reports_equal_scikit_learn():
    auroc,ap = finding_scores(T, P)
    rep,cm = findings_report(T, P>=.5, list('abc')),findings_confusion(T, P>=.5)
    for k,l in enumerate('abc'):
        m = ~np.isnan(T[:,k])
        t,p = T[m,k],P[m,k]
        assert auroc[k]==skm.roc_auc_score(t, p) and ap[k]==skm.average_precision_score(t, p)
        assert np.allclose(rep.loc[l][:3].astype(float), skm.precision_recall_fscore_support(t, p>=.5, average='binary', zero_division=0)[:3])
        assert (cm[k]==skm.confusion_matrix(t, p>=.5)).all() and rep.support[l]==t.sum()
    m = ~np.isnan(T)
    assert np.isclose(rep.f1['micro avg'], skm.f1_score(T[m], P[m]>=.5)) and np.isclose(rep.f1['macro avg'], rep.f1[:3].mean())
    per_image = [skm.recall_score(t[k], p[k]>=.5, zero_division=0) for t,p,k in zip(T, P, m) if k.any()]
    assert np.isclose(rep.recall['samples avg'], np.mean(per_image))

def test_without_masks_the_report_is_classification_report():
    t,p = np.nan_to_num(T).astype(int),P>=.5
    want = pd.DataFrame(skm.classification_report(t, p, target_names=list('abc'), output_dict=True, zero_division=0)).T
    have = findings_report(t, p, list('abc'))
    assert list(have.index)==list(want.index) and np.allclose(have.values, want.values)

def test_one_finding_alone():
    "scikit-learn takes a single column for two classes; here it stays one finding"
    t,p = T[:,:1],P[:,:1]>=.5
    rep = findings_report(t, p, ['a'])
    assert findings_confusion(t, p).tolist()==[[[2,1],[1,2]]] and rep.support.tolist()==[3]*5
    for a in ('a','micro avg','macro avg','weighted avg'): assert np.isclose(rep.recall[a], 2/3) and np.isclose(rep.precision[a], 2/3)
    assert np.isclose(rep.recall['samples avg'], 2/6) # by image: one where the finding is rightly called, six images known

def test_top_losses_name_the_costliest_finding():
    t = findings_table(list('uvwxyz_'), T, P>=.5, P, list('abc'))
    assert t.label.tolist()==['a|c','b','a|b','','a','c',''] and t.predicted[1]=='a|b' # c is called, but nobody knows
    assert t.finding[0]=='c' and np.isclose(t.loss[0], -np.log([.9,.8,.4]).sum()) and t.loss[6]==0 and t.wrong.tolist()==[1,1,1,0,2,1,0]

@pytest.mark.parametrize('rule', ['f1','youden','sensitivity'])
def test_no_threshold_does_better_than_the_fitted_one(rule):
    rng = np.random.default_rng(0)
    for trial in range(20):
        t = (rng.random(60) < .3).astype(float); t[:6],t[6] = 1,0
        p = np.clip(.2*t + rng.random(60), 0, 1).round(rng.integers(1, 4)).astype(np.float32) # with ties
        t[rng.random(60) < .1] = nan
        if (t==1).sum()<5: continue
        th,k = fit_thresholds(t[:,None], p[:,None], rule, sensitivity=.8)[0],~np.isnan(t)
        def score(c):
            q = p[k]>=c
            sens,spec = q[t[k]==1].mean(),(~q)[t[k]==0].mean()
            return dict(f1=skm.f1_score(t[k], q, zero_division=0), youden=sens+spec-1, sensitivity=sens>=.8-1e-9)[rule]
        cuts = [*np.unique(p), 2]
        assert score(th) >= max(map(score, cuts))-1e-9 and not np.isin(th, p[k & (p>0)])
        if rule=='sensitivity': assert not any(score(c) for c in cuts if c>th and ((p[k]>=c)!=(p[k]>=th)).any())

def test_thresholds_of_rare_findings_and_unreadable_rows():
    t = np.array([[1,1],[1,0],[1,0],[0,0],[0,0],[1,0],[1,0]],float); p = np.array([[.4,.9]]*3+[[.2,.1]]*2+[[.4,.1]]+[[nan,nan]])
    assert fit_thresholds(t, p).tolist()==[.5,.5] # four of five are readable
    th = fit_thresholds(t, p, min_positives=4)
    assert np.allclose(th, [.3,.5]) and 'b' in thresholds_rule(t, p, list('ab'), min_positives=4).split(':')[1]
    assert fit_thresholds(np.ones((9,1)), np.full((9,1), .7)).tolist()==[.5] # nothing to tell apart
    assert fit_thresholds(t[:,:1], np.full((7,1), .3), min_positives=1)[0] <= np.float32(.3) # all alike
    a = np.float32(.3); b = np.nextafter(a, np.float32(1)) # two neighbours: the cut still lies between
    x = np.array([[b]]*5+[[a]]*5); th = fit_thresholds(np.array([[1.]]*5+[[0.]]*5), x)
    assert ((x>=th)==np.array([[1]]*5+[[0]]*5)).all()
    for bad in (dict(targets=t*.7), dict(probs=p*4), dict(rule='best'), dict(sensitivity=0)):
        with pytest.raises(DataError): fit_thresholds(**{**dict(targets=t, probs=p, rule='f1'), **bad})

# --- intervals

def test_bootstrap_by_patient_is_wider_where_patients_repeat():
    rng = np.random.default_rng(1)
    t = (rng.random(40) < .4).astype(float); p = .2*t+rng.random(40)
    t5,p5,who = np.repeat(t, 5)[:,None],np.repeat(p, 5)[:,None],[f'p{i//5}' for i in range(200)]
    for by,(a,b) in zip(('auroc','ap'), zip(bootstrap_scores(t5, p5, who), bootstrap_scores(t5, p5, ['']*200))):
        (lo,hi),(lo1,hi1) = draws_interval(a[:,0]),draws_interval(b[:,0])
        assert hi-lo > 1.8*(hi1-lo1), by # sqrt(5) in theory
    one = draws_interval(bootstrap_scores(t[:,None], p[:,None], ['']*40)[0][:,0])
    assert np.allclose(one, draws_interval(bootstrap_scores(t5, p5, who)[0][:,0]), atol=.02) # copies tell nothing

def test_bootstrap_draws_are_those_of_scikit_learn():
    "Seeded; the same figures as scikit-learn's on the rows drawn"
    t,p,who = np.array([[1],[0],[nan],[1],[0],[1.]]),np.array([[.5],[.5],[.9],[.2],[.1],[.8]]),['a','a','b','','c','']
    d = bootstrap_scores(t, p, who, n=50, seed=3)
    assert all(np.array_equal(a, b, equal_nan=True) for a,b in zip(d, bootstrap_scores(t, p, who, n=50, seed=3)))
    from mednist_fastai.evaluate import _draws, _units
    for i,w in enumerate(np.concatenate(list(_draws(_units(who), 50, 3))).astype(int)):
        assert w[0]==w[1] # one patient
        rows = np.repeat(np.arange(6), np.where(np.isnan(t[:,0]), 0, w))
        if len(np.unique(t[rows]))<2: assert np.isnan(d[0][i,0])
        else: assert np.allclose([d[0][i,0], d[1][i,0]], [f(t[rows,0], p[rows,0]) for f in (skm.roc_auc_score, skm.average_precision_score)])

def _single(label, predicted, p, group, error=''):
    n = len(label)
    return Evaluation('x', 'test', ['NORMAL','PNEUMONIA'], pd.DataFrame(dict(path=[str(i) for i in range(n)], label=label, source='x', group=group, predicted=predicted,
                      probability=np.maximum(p, 1-np.array(p)), error=error, p_NORMAL=1-np.array(p), p_PNEUMONIA=p)))

def test_sensitivity_and_specificity():
    p = [.9,.8,.3,.6,.2,.1,.4,nan]
    label = ['PNEUMONIA']*3+['NORMAL']*4+['PNEUMONIA']
    said = ['' if np.isnan(o) else 'PNEUMONIA' if o>.5 else 'NORMAL' for o in p]
    b = _single(label, said, p, ['a','a','b','c','d','e','f','g'], ['']*7+['broken']).binary('PNEUMONIA')
    assert (b['sensitivity'],b['specificity'],b['n'],b['positives'],b['unreadable']) == (.5,.75,8,4,1)
    assert b['sensitivity_interval']==list(wilson(2, 4)) and b['specificity_interval']==list(wilson(1, 4))
    assert b['auroc']==skm.roc_auc_score([1]*3+[0]*4+[1], p[:-1]+[0.]) # the broken file is ranked last
    with pytest.raises(DataError, match='both'): _single(label[:3], said[:3], p[:3], '').binary('PNEUMONIA')
    assert _single(label, said, p, '').roc_figure('PNEUMONIA').axes[0].lines

def test_a_broken_file_is_wrong_in_every_finding(done, tmp_path):
    out,_,df,_ = done
    rows = df[df.split=='test'].head(30).copy()
    rows.attrs = df.attrs
    good = evaluate(out/'learner', rows)
    (tmp_path/'x.png').write_bytes(b'x')
    rows.iloc[0, rows.columns.get_loc('path')] = str(tmp_path/'x.png')
    bad = evaluate(out/'learner', rows)
    assert bad.metrics['unreadable']==1 and bad.predictions.predicted[0]=='' and bad.confusion_matrix().sum()==good.confusion_matrix().sum()-(~np.isnan(good.targets[0])).sum()
    assert (bad._wrong()[0], bad._wrong()[1:].tolist()) == ((~np.isnan(good.targets[0])).sum(), good._wrong()[1:].tolist())
    worst = bad.errors().iloc[0]
    assert worst.path==str(tmp_path/'x.png') and worst.error and worst.predicted=='' and bad.errors_figure().axes

# --- the whole way

def test_a_run_learns_and_is_measured(done):
    out,recipe,df,rec = done
    m = rec['metrics'][0]
    assert all(f['auroc'] > .9 and f['auroc_interval'][0] <= f['auroc'] <= f['auroc_interval'][1] for f in m['findings']), m['findings']
    assert m['n']==(df.split=='test').sum() and m['patients']==df[df.split=='test'].group.nunique()
    assert {'roc.png','errors.png','confusion.png','top_losses.png','batch.png','losses.png','predictions.csv','record.json'} <= {p.name for p in out.iterdir()}
    assert json.loads((out/'record.json').read_text())==json.loads(json.dumps(rec)) and run(recipe, out, df=df, bar=False)['metrics']==json.loads(json.dumps(rec['metrics']))
    assert set(rec['training']['epochs'][0]) >= {'auroc','average_precision'} and rec['data']['images']['train']==(df.split=='train').sum()
    assert rec['data']['counts']['train']=={l:int(((df.split=='train') & df.label.str.contains(l)).sum()) for l in NAMES}

def test_predictions_can_be_measured_again_from_the_table(done):
    "The figures of the record follow from predictions.csv and scikit-learn alone"
    out,_,df,rec = done
    p = pd.read_csv(out/'predictions.csv', keep_default_na=False)
    assert {'path','label','uncertain','group','predicted','error'} <= set(p)
    for f in rec['metrics'][0]['findings']:
        l = f['label']
        o = p[[l not in u.split('|') for u in p.uncertain]]
        t,s,said = [l in x.split('|') for x in o.label],o[f'p_{l}'].astype(float),[l in x.split('|') for x in o.predicted]
        assert np.isclose(f['auroc'], skm.roc_auc_score(t, s)) and np.isclose(f['average_precision'], skm.average_precision_score(t, s))
        assert np.isclose(f['f1'], skm.f1_score(t, said)) and ((s >= f['threshold']-1e-6)==said).all() and f['support']==sum(t)

def test_thresholds_survive(done, tmp_path):
    out,recipe,df,rec = done
    lf = open_learner(out/'learner')
    valid = df[df.split=='valid']
    probs,_,_ = predict_files(list(valid.path), lf)
    want = fit_thresholds(index_targets(valid, lf.labels), probs)
    assert lf.thresholds.dtype==np.float32 and np.array_equal(lf.thresholds, want) and list(rec['thresholds']['values'].values())==want.tolist()
    assert 'valid' in lf.info['thresholds_rule'] and rec['thresholds']['rule']==lf.info['thresholds_rule']
    copy = shutil.copytree(out/'learner', tmp_path/'l')
    new = set_thresholds(copy, want/2, 'half of the others')
    assert np.array_equal(new.thresholds, want/2) and new.digest!=lf.digest and new.info['metrics']==lf.info['metrics']
    assert set_thresholds(copy, want, 'as before').digest==lf.digest
    text = (copy/'config.json').read_text()
    (copy/'config.json').write_text(text.replace(f'{want.tolist()[0]}', '0.123', 1))
    with pytest.raises(LearnerDamagedError): open_learner(copy)

def test_the_card_shows_findings_and_thresholds(done):
    card = (done[0]/'learner/README.md').read_text()
    for l in NAMES: assert card.count(f'| {l} |')==2
    assert 'mean AUROC' in card and 'bootstrap by patient' in card and 'best F1' in card and 'nan' not in card.lower().replace('finding','')

def test_odd_thresholds_are_refused(done, tiny, tmp_path):
    copy = shutil.copytree(done[0]/'learner', tmp_path/'l')
    for bad in ([.5], [.5,.5,2], [.5,.5,nan]):
        with pytest.raises(LearnerFormatError): set_thresholds(copy, bad, 'by hand')
    with pytest.raises(LearnerFormatError, match='rule'): set_thresholds(copy, [.5]*3, '')
    with pytest.raises(LearnerFormatError, match='most likely'): set_thresholds(tiny, [.5]*6, 'by hand')
    assert open_learner(copy).thresholds.tolist()==open_learner(done[0]/'learner').thresholds.tolist()

def test_a_folder_without_thresholds_keeps_its_digest(tiny):
    for lf in (open_learner(tiny), open_learner()):
        score = [[lf.info['sha256'][STRANGERS], lf.stranger_threshold]] if STRANGERS in lf.info['sha256'] else []
        assert lf.digest==hashlib.sha256(json.dumps([lf.info['sha256']['model.onnx'], lf.labels, lf.info['preprocessing'], *score]).encode()).hexdigest()
        assert lf.thresholds.tolist()==[.5]*len(lf.labels) and lf.info['thresholds'] is None

def test_thresholds_move_with_the_temperature(done, tmp_path):
    "The same images stay positive, and there and back is the same"
    out,_,df,_ = done
    at = shutil.copytree(out/'learner', tmp_path/'l')
    lf = open_learner(at)
    probs = predict_files(list(df.path[:60]), lf)[0]
    other = set_trust(at, [.5,2.,3.])
    moved = predict_files(list(df.path[:60]), other.path)[0]
    clear = np.abs(probs-lf.thresholds)>1e-4
    assert abs(moved-probs).max()>.01 and ((moved>=other.thresholds)==(probs>=lf.thresholds))[clear].all()
    assert np.array_equal(set_trust(at, lf.info['temperature']).thresholds, lf.thresholds)

def test_comparison_counts_decisions(done, tmp_path):
    out,_,df,_ = done
    same = compare(out/'learner', out/'learner', df)
    known = int((~np.isnan(same.new.targets)).sum())
    assert same.passed and len(same.table)==0 and len(same.new.decisions())==known and f'of {known:,} before' in repr(same)
    copy = shutil.copytree(out/'learner', tmp_path/'l')
    set_thresholds(copy, [0.,0.,0.], 'all is called present')
    worse = compare(out/'learner', copy, df)
    assert worse.broken>worse.mended and not worse.passed and worse.p_value < .01 and set(worse.table.new)<={*NAMES}
    assert (worse.new._wrong().sum()-worse.old._wrong().sum()) == worse.broken-worse.mended

def test_strange_findings_are_refused(done, chests):
    with pytest.raises(DataError, match='Edema.*keep_findings'): evaluate(done[0]/'learner', chests)
    with pytest.raises(DataError, match='threshold_rule'): run(Recipe(task='multi_label', threshold_rule='best'), 'nowhere')

def test_interpretation_of_a_learner(done, chests, tmp_path):
    learn,_ = train(Recipe(task='multi_label', size=32, arch='test_resnet', epochs=1, bs=32, policy='none', cache=False), keep_findings(chests, NAMES), path=tmp_path, bar=False)
    i = LearnerInterpretation.from_learner(learn)
    assert (i.confusion_matrix().sum((1,2))==(~np.isnan(i.targs.numpy())).sum(0)).all() and i.report().index[:3].tolist()==NAMES
    for f in (i.confusion_figure(), i.confusion_figure(normalize=True), i.roc_figure(), i.top_losses_figure(4)): assert f.axes
    t = i.top_losses_table(4)
    assert t.loss.is_monotonic_decreasing and set(t.finding)<=set(NAMES)
    with learn.no_bar(): learn.show_results(max_n=4); i.plot_top_losses(4)
    i.set_thresholds([0,0,0])
    assert i.report().recall[:3].tolist()==[1,1,1] and not any(b.startswith('no ') for _,b,_ in i.most_confused())
