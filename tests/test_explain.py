"Maps: the layer is found in any timm CNN, nothing of the network is changed, and what can't be explained has a typed error"
import builtins
from pathlib import Path
import numpy as np
import pytest
torch = pytest.importorskip('torch')
pytest.importorskip('pytorch_grad_cam')
import timm
from PIL import Image
from mednist_fastai import cli
from mednist_fastai.explain import explain, explain_sanity, learner_network
from mednist_fastai.images import ImageError, load_image
from mednist_fastai.infer import predict_files
from mednist_fastai.interpret import ExplainError, cam_inputs, cam_layer, cam_sanity, grad_cam
from mednist_fastai.learner import LearnerNotFoundError, open_learner
from mednist_fastai.models import create_backbone
from mednist_fastai.train import Autocast

class Halves(torch.nn.Module):
    "Two channels, each of which sees one half of the image, and the mean of each as a class; their weights are far apart"
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 2, 1, bias=False)
        with torch.no_grad(): self.conv.weight.copy_(torch.diag(torch.tensor([1.,50.]))[...,None,None])
    def forward(self, x):
        left = torch.arange(x.shape[3]) < x.shape[3]//2
        return self.conv(torch.cat([x*left, x*~left], 1)).mean((2,3))

def test_the_map_is_where_the_evidence_is():
    "Checked on a network whose reasons are known: the same image, and a map for each class"
    x = torch.zeros(2, 1, 8, 8); x[:,0,2,1] = x[:,0,5,6] = 1
    m = grad_cam(Halves(), x, [0,1])
    assert m.shape==(2,8,8) and m.dtype==np.float32 and m.min()==0 and abs(m.max()-1)<1e-5
    assert [np.argwhere(o>.1).tolist() for o in m]==[[[2,1]],[[5,6]]]
    assert not grad_cam(Halves(), -x, [0,1]).any() # nothing speaks for it: empty, not scaled up

@pytest.mark.parametrize('arch,size', [('resnet34',64),('test_resnet',64),('mobilenetv2_100',64),('densenet121',64),('convnext_atto',64),('mednet',64),('pneumonia_cnn',150)])
def test_a_layer_is_found(arch, size):
    torch.manual_seed(0)
    net,x = create_backbone(arch, 3, size=size).eval(),torch.randn(2, 1, size, size)
    shapes,name = [],cam_layer(net, x)
    h = net.get_submodule(name).register_forward_hook(lambda m,i,o: shapes.append(o.shape))
    net(x); h.remove()
    assert len(shapes[0])==4 and min(shapes[0][2:])>=4
    m = grad_cam(net, x, [0,2])
    assert m.shape==(2,size,size) and 0<=m.min() and m.max()<=1 and np.isfinite(m).all()

def test_rgb_and_another_size():
    net = create_backbone('test_efficientnet', 3, channels=3).eval()
    assert grad_cam(net, torch.randn(1, 3, 96, 128), [1]).shape==(1,96,128)
    assert cam_layer(net, torch.randn(1, 3, 128, 128))!=cam_layer(net, torch.randn(1, 3, 64, 64)) # larger images, a later layer

@pytest.mark.parametrize('arch,size', [('test_vit',160),('test_resnet',6)])
def test_no_layer(arch, size):
    net = timm.create_model(arch, in_chans=1)
    with pytest.raises(ExplainError, match='convolutional network'): grad_cam(net, torch.zeros(1, 1, size, size), [0])

def test_a_network_is_left_as_it_was():
    net = create_backbone('test_resnet', 3)
    for p in net.parameters(): p.requires_grad_(False) # as a frozen body is
    net.train()
    before,x = {k:v.clone() for k,v in net.state_dict().items()},torch.randn(4, 1, 64, 64)
    a = grad_cam(net, x, [0,1,2,0])
    cam_sanity(net, x, [0,1,2,0], shuffles=2)
    assert net.training and all((v==before[k]).all() for k,v in net.state_dict().items()) # batch norm's statistics, too
    assert not x.requires_grad and all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())
    with torch.no_grad(): assert (grad_cam(net, x, [0,1,2,0])==a).all()
    Autocast(net, 'cpu') # a network that trains in bfloat16 is explained in float32
    assert (grad_cam(net, x, [0,1,2,0])==a).all() and len(net._forward_hooks)==1

def test_a_class_out_of_range_is_an_error():
    "The library's context manager would swallow an IndexError"
    with pytest.raises(IndexError): grad_cam(create_backbone('test_resnet', 3), torch.randn(1, 1, 64, 64), [3])

def test_one_file(tiny, phantom_files):
    f = phantom_files[0]
    e,lf = explain(f, tiny),open_learner(tiny)
    probs = predict_files([f], tiny, precision='float32')[0][0]
    assert e.label==lf.labels[probs.argmax()] and abs(e.probability-probs.max())<1e-6
    assert (e.image==load_image(f, lf.size, lf.method, lf.mode)).all() and e.map.shape==e.image.shape
    other = lf.labels[probs.argmin()]
    o = explain(f, tiny, label=other)
    assert o.label==other and abs(o.probability-probs.min())<1e-6 and (o.map!=e.map).any()
    assert len(e.figure().axes)==2 and Path(f).name in repr(e)

def test_the_network_is_the_learner(tiny, phantom_files):
    "The weights that are explained give the probabilities of the graph that sorts"
    lf,files = open_learner(tiny),phantom_files[::40]
    _,x = cam_inputs(files, lf.info['preprocessing'])
    with torch.no_grad(): p = learner_network(tiny)(x).softmax(1).numpy()
    assert np.abs(p-predict_files(files, tiny, precision='float32')[0]).max()<1e-4

def test_sanity(tiny, phantom_files):
    "Shuffled weights of the last layer change the maps; a repeat changes nothing; the seed decides"
    files = phantom_files[::12]
    s = explain_sanity(tiny, files, shuffles=4)
    assert list(s.repeat)==[1.]*len(files) and s.shuffled.mean()<.6 and list(s.path)==files
    assert s.equals(explain_sanity(tiny, files, shuffles=4)) and not s.shuffled.equals(explain_sanity(tiny, files, shuffles=4, seed=1).shuffled)

def test_typed_errors(tiny, phantom_files, tmp_path):
    (tmp_path/'bad.png').write_bytes(b'no image')
    with pytest.raises(ImageError): explain(tmp_path/'bad.png', tiny)
    with pytest.raises(LearnerNotFoundError): explain(phantom_files[0], tmp_path/'none')
    with pytest.raises(ExplainError, match='knows AbdomenCT'): explain(phantom_files[0], tiny, label='Foot')

def test_scikit_learn_has_no_network(lab, phantom_files, tmp_path):
    from mednist_fastai.data import get_index, make_split
    from mednist_fastai.learner import save_sklearn
    from mednist_fastai.train import Recipe, fit_svm
    recipe = Recipe('svm', source=str(lab/'phantoms'), size=16, arch='svm', policy='none', cache=False, model_kwargs=dict(n_components=[8], cs=[1], gammas=[1e-3], cv=3, grid_n=60))
    index = make_split(get_index(lab/'phantoms'), 'random', seed=0)
    svm,record = fit_svm(recipe, index)
    save_sklearn(svm, tmp_path/'svm', svm.classes_.tolist(), dict(size=16, method='squash', mode='L'), index, record)
    with pytest.raises(ExplainError, match='scikit-learn'): explain(phantom_files[0], tmp_path/'svm')

def test_without_the_library(tiny, phantom_files, monkeypatch):
    real = builtins.__import__
    def absent(name, *args, **kw):
        if name.split('.')[0]=='pytorch_grad_cam': raise ImportError(name)
        return real(name, *args, **kw)
    monkeypatch.setattr(builtins, '__import__', absent)
    for f in (lambda: explain(phantom_files[0], tiny), lambda: grad_cam(torch.nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 8, 8), [0])):
        with pytest.raises(ExplainError) as e: f()
        assert "pip install 'mednist_fastai[explain]'" in str(e.value)

def test_several_findings_and_colour(tmp_path):
    from mednist_fastai.blocks import index_dls
    from mednist_fastai.data import make_split
    from mednist_fastai.interpret import LearnerInterpretation
    from mednist_fastai.sources import make_findings
    from mednist_fastai.train import timm_learner
    df = make_split(make_findings(tmp_path/'f', n=150), 'grouped')
    learn = timm_learner(index_dls(df, size=32, bs=8, mode='RGB', task='multi_label', cache=None, policy='none'), 'test_resnet')
    interp = LearnerInterpretation.from_learner(learn)
    table = interp.top_losses_table(3)
    pixels,maps,labels = interp.explained(table)
    assert pixels.shape==(3,32,32,3) and maps.shape==(3,32,32) and labels==list(table.finding)
    assert len(interp.top_losses_figure(3, cam=True).axes)==6 and len(interp.top_losses_figure(3).axes)==6

def test_command(tiny, phantom_files, tmp_path, capsys):
    f = phantom_files[0]
    cli.mednist_explain(f, str(tiny), label='CXR', out=str(tmp_path/'m.png'))
    said = capsys.readouterr().out
    assert said.startswith('CXR, probability') and Image.open(tmp_path/'m.png').size[0]>200
    before = (tmp_path/'m.png').read_bytes()
    for args,code,word in ((dict(out=str(tmp_path/'m.png')),2,'there already'),(dict(label='Foot', out=str(tmp_path/'n.png')),1,'knows'),(dict(window='long', out=str(tmp_path/'n.png')),2,'long')):
        with pytest.raises(SystemExit) as e: cli.mednist_explain(f, str(tiny), **args)
        err = capsys.readouterr().err
        assert e.value.code==code and word in err and len(err.strip().splitlines())==1
    assert (tmp_path/'m.png').read_bytes()==before and not (tmp_path/'n.png').exists()
