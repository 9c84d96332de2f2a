"Faults in a learner folder: every damaged file is refused, and saving leaves no half folder"
import json, random, shutil
import pytest
from mednist_fastai.learner import *

@pytest.fixture
def copy(tiny, tmp_path): return shutil.copytree(tiny, tmp_path/'copy')

@pytest.mark.parametrize('file', ['config.json', *FILES])
def test_flipped_bytes_are_refused(copy, file):
    "Any flipped bit in any file, at 12 seeded places"
    whole,rng = (copy/file).read_bytes(),random.Random(file)
    for _ in range(12):
        i,bit = rng.randrange(len(whole)),1<<rng.randrange(8)
        (copy/file).write_bytes(whole[:i] + bytes([whole[i]^bit]) + whole[i+1:])
        try: config = open_learner(copy).config
        except LearnerError: continue
        # white space of the configuration may change without changing what it says
        assert file=='config.json' and config == json.loads(whole), (i, bit)
    (copy/file).write_bytes(whole)
    open_learner(copy)

@pytest.mark.parametrize('file', ['config.json', *FILES])
def test_missing_and_truncated(copy, file):
    whole = (copy/file).read_bytes()
    (copy/file).write_bytes(whole[:len(whole)//2])
    with pytest.raises(LearnerError): open_learner(copy)
    (copy/file).unlink()
    with pytest.raises(LearnerError): open_learner(copy)

@pytest.mark.parametrize('name', ['learner.pkl','learner.pth','noext'])
def test_pickles_are_never_opened(tmp_path, name):
    import pickle
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'ran'), 'w'))
    (tmp_path/name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UnsafeLearnerError): open_learner(tmp_path/name)
    with pytest.raises(UnsafeLearnerError): load_export(tmp_path/name)
    assert not (tmp_path/'ran').exists()

@pytest.mark.parametrize('bad', ['[]', 'null', '{"mednist_fastai": 3}', '{"mednist_fastai": {}}', '{"mednist_fastai": {"format": "1", "sha256": {}}}', '', '\x00'])
def test_odd_configurations_are_typed(tmp_path, bad):
    (tmp_path/'config.json').write_text(bad)
    with pytest.raises(LearnerError): open_learner(tmp_path)

def test_a_graph_that_disagrees_is_refused(tiny):
    "The check compares: a graph made with another temperature does not pass for this model"
    import numpy as np, timm
    lf = open_learner(tiny)
    model,p = timm.create_model(f'local-dir:{lf.path}', pretrained=True).eval(),lf.info['preprocessing']
    x = np.random.default_rng(0).integers(0, 256, (64, lf.channels, lf.size, lf.size), dtype=np.uint8)
    assert check_graph(graph_module(model, p['mean'], p['std']), lf.graph, x) < 1e-4
    with pytest.raises(LearnerCheckError): check_graph(graph_module(model, p['mean'], p['std'], temperature=2.), lf.graph, x)

def test_failed_save_leaves_nothing(lab, tmp_path, monkeypatch):
    "When the graph can't be written, no folder appears and no leftovers stay"
    import mednist_fastai.learner as m
    from mednist_fastai.train import index_dls, make_split, timm_learner
    from mednist_fastai.data import get_index
    learn = timm_learner(index_dls(make_split(get_index(lab/'phantoms'))), 'test_resnet')
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(m, 'export_graph', full)
    with pytest.raises(OSError): save_learner(learn, tmp_path/'new')
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize('arch', ['resnetv2_50','densenet121','legacy_xception','mobilenetv2_100','mobilenetv3_small_050','regnetx_002','convnext_atto','vit_tiny_patch16_224','pneumonia_cnn','mednet'])
def test_graph_is_the_model(arch):
    "Body, embedding and last layer, taken apart for the graph, give what the model gives; timm's classifiers are not all linear layers"
    import torch
    from mednist_fastai.learner import graph_module
    from mednist_fastai.models import create_backbone
    torch.manual_seed(0)
    graph = graph_module(create_backbone(arch, 5, size=64).eval(), [.4], [.2], 'multi_label', 1.5)
    x = torch.randint(0, 256, (2,1,64,64), dtype=torch.uint8)
    with torch.no_grad(): probs,embedding = graph(x)
    assert embedding.ndim==2 and probs.shape==(2,5)
    with torch.no_grad(): torch.testing.assert_close(probs, graph.whole(x), rtol=1e-5, atol=1e-6)
