"The pipeline under `Predictor`: order, exactness, bounds, and threads that end"
import os, signal, subprocess, sys, threading, time
from itertools import cycle, islice
import numpy as np, pytest
from mednist_fastai import infer
from mednist_fastai.images import ImageError, load_image
from mednist_fastai.engines import EngineError, OpenVino, supported
from mednist_fastai.infer import DEPTH, DeviceError, Predictor, predict_files
from mednist_fastai.learner import open_learner

@pytest.fixture
def files(phantom_files, tmp_path):
    "70 files, every seventh of them bad in one of five ways"
    bad = [tmp_path/o for o in ('text.jpg','empty.png','cut.png','folder.png','absent.png')]
    bad[0].write_text('no image')
    bad[1].touch()
    with open(phantom_files[0], 'rb') as f: bad[2].write_bytes(f.read()[:200])
    bad[3].mkdir()
    good,bad = cycle(phantom_files[::5]),cycle(map(str, bad))
    return [next(bad) if i%7==3 else next(good) for i in range(70)]

def threads(): return {t for t in threading.enumerate() if t.name.startswith(('decode','network'))}

@pytest.mark.parametrize('bs,workers', [(1,1),(3,2),(16,4),(64,2),(500,3)])
def test_order_and_errors(tiny, files, bs, workers):
    res = list(Predictor(tiny, batch_size=bs, workers=workers).predict(files))
    assert [o.path for o in res] == files
    for i,o in enumerate(res):
        if i%7==3: assert isinstance(o.error, ImageError) and o.error.path==o.path and o.probabilities is None and o.embedding is None
        else: assert o.error is None and o.probabilities.dtype==np.float32 and abs(o.probabilities.sum()-1)<1e-5

def test_same_as_onnxruntime(tiny, phantom_files):
    import onnxruntime as ort
    fs = phantom_files[::3]
    x = np.stack([load_image(f, 64, method='squash', mode='L')[None] for f in fs])
    opts = ort.SessionOptions()
    opts.intra_op_num_threads = 1
    sess = ort.InferenceSession(str(tiny/'model.onnx'), opts, providers=['CPUExecutionProvider'])
    probs,embs = sess.run(['probabilities','embedding'], {'image':x})
    p,e,errors = predict_files(fs, tiny, batch_size=17, workers=2, precision='float32')
    assert errors==[None]*len(fs)
    np.testing.assert_allclose(p, probs, atol=1e-6)
    np.testing.assert_allclose(e, embs, atol=1e-5)
    labels = Predictor(tiny).labels
    assert np.mean([labels[i]==f.split(os.sep)[-2] for i,f in zip(p.argmax(1), fs)]) > .6 # a learner that has learned something

def test_rows_stay_aligned(tiny, files):
    probs,embs,errors = predict_files(files, tiny, batch_size=8)
    pred = Predictor(tiny)
    alone = {f:next(pred.predict([f])) for f in set(files)}
    for i,f in enumerate(files):
        if alone[f].error: assert np.isnan(probs[i]).all() and np.isnan(embs[i]).all() and type(errors[i]) is type(alone[f].error)
        else: assert (probs[i]==alone[f].probabilities).all() and (embs[i]==alone[f].embedding).all() and errors[i] is None

def test_empty_and_all_bad(tiny, tmp_path):
    assert list(Predictor(tiny).predict([])) == []
    assert predict_files([], tiny)[0].shape == (0,6)
    probs,embs,errors = predict_files([tmp_path/'a', tmp_path/'b'], tiny)
    assert np.isnan(probs).all() and embs.shape[1]>1 and all(errors)

def test_a_bug_in_a_decoder_costs_one_file(tiny, phantom_files, monkeypatch):
    def load(path, *args, **kw):
        if path==phantom_files[5]: raise ZeroDivisionError('oh')
        return load_image(path, *args, **kw)
    monkeypatch.setattr(infer, 'load_image', load)
    res = list(Predictor(tiny).predict(phantom_files[:10]))
    assert [i for i,o in enumerate(res) if o.error] == [5] and 'ZeroDivisionError' in res[5].error.reason

def test_bounded(tiny, phantom_files, monkeypatch):
    "However slow the reader is, no more than DEPTH batches and the one being read are decoded ahead; `paths` is read lazily"
    decoded,asked,bs = [],[],4
    def load(path, *args, **kw):
        decoded.append(path)
        return load_image(path, *args, **kw)
    monkeypatch.setattr(infer, 'load_image', load)
    def paths():
        for f in islice(cycle(phantom_files), 200):
            asked.append(f)
            yield f
    ahead = []
    for i,_ in enumerate(Predictor(tiny, batch_size=bs, workers=4).predict(paths())):
        end = time.monotonic()+20
        while i in (0,50,100) and max(len(decoded),len(asked))-i<bs*DEPTH and time.monotonic()<end: time.sleep(.01)
        if i in (0,50,100): time.sleep(.1) # the time to go too far
        ahead.append(max(len(decoded),len(asked)) - i)
    assert len(decoded)==200 and bs*DEPTH <= max(ahead) <= bs*(DEPTH+1)

def test_close_ends_threads(tiny, phantom_files):
    for stop_at in (1,5,70):
        gen = Predictor(tiny, batch_size=8, workers=3).predict(cycle(phantom_files))
        for _ in range(stop_at): next(gen)
        assert threads()
        gen.close()
        assert not threads()
    for o in Predictor(tiny).predict(cycle(phantom_files)): break
    del o
    with pytest.raises(ZeroDivisionError):
        for o in Predictor(tiny).predict(phantom_files): 1/0
    assert list(Predictor(tiny).predict(phantom_files[:3])) and not threads()

def test_close_is_prompt(tiny, phantom_files, monkeypatch):
    "Closing waits for the file at hand, not for all that is in flight (here 190 files of .1 s)"
    def slow(path, *args, **kw):
        if path==phantom_files[1]: time.sleep(.1)
        return load_image(path, *args, **kw)
    monkeypatch.setattr(infer, 'load_image', slow)
    gen = Predictor(tiny, batch_size=64, workers=1).predict(phantom_files[:1]*64 + phantom_files[1:2]*500)
    next(gen)
    t = time.monotonic()
    gen.close()
    assert time.monotonic()-t < 3 and not threads()

SLOW = '''
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell starts what it puts in the background with SIGINT ignored
from mednist_fastai import infer
real = infer.load_image
def slow(*args, **kw):
    time.sleep(.05)
    return real(*args, **kw)
infer.load_image = slow
p = infer.Predictor(sys.argv[1], batch_size=64)
print('ready', flush=True)
for o in p.predict([sys.argv[2]]*100_000): pass
'''
@pytest.mark.skipif(os.name=='nt', reason='Ctrl-C is sent otherwise there')
def test_ctrl_c(tiny, phantom_files):
    p = subprocess.Popen([sys.executable, '-c', SLOW, tiny, phantom_files[0]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='ready\n'
    time.sleep(.5)
    t = time.monotonic()
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=20)[1]
    assert time.monotonic()-t < 4 and p.returncode and 'KeyboardInterrupt' in err

def test_dicom_choices(tiny, phantom_files, monkeypatch):
    "Window and frame reach every file that is read, and change what the network sees of DICOM alone"
    import pydicom
    from pathlib import Path
    at = Path(pydicom.__file__).parent/'data/test_files'
    ct,film = str(at/'CT_small.dcm'),str(at/'examples_ybr_color.dcm')
    pred = Predictor(tiny)
    for kw in dict(window='lung'),dict(window=(0,99), frame=0),{}:
        got = predict_files([ct, film, phantom_files[0]], tiny, **kw)[0]
        x = np.stack([load_image(f, 64, mode='L', **kw)[None] for f in (ct, film, phantom_files[0])])
        assert np.array_equal(got, pred.forward(x)[0])
    res = list(Predictor(tiny, frame=29).predict([ct, film, phantom_files[0]]))
    assert [o.error is None for o in res] == [False,True,True] and 'frame 29 of a file that has 1' in res[0].error.reason
    for kw in dict(window='liver'),dict(window=-1),dict(frame=-1):
        with pytest.raises(ValueError): Predictor(tiny, **kw)

def test_decide(tiny, monkeypatch):
    from types import SimpleNamespace
    from mednist_fastai.learner import LearnerError
    pred = Predictor(tiny)
    with pytest.raises(LearnerError, match='most likely'): pred.decide(np.zeros((2,6)))
    monkeypatch.setattr(pred, 'learner', SimpleNamespace(task='multi_label', thresholds=np.float32([.5,.25,.9])))
    probs = np.float32([[.5,.25,.9],[.49,.24,.89],[np.nan]*3,[1,0,1]])
    assert pred.decide(probs).tolist() == [[True]*3,[False]*3,[False]*3,[True,False,True]]
    assert pred.decide(probs.tolist()).dtype==bool and pred.decide(probs[3]).tolist() == [True,False,True]

def test_arguments(tiny):
    with pytest.raises(DeviceError, match='None, .cpu. or .cuda.'): Predictor(tiny, device='tpu')
    for kw in dict(batch_size=0),dict(workers=0):
        with pytest.raises(ValueError): Predictor(tiny, **kw)
    import torch
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match='nvidia-smi'): Predictor(tiny, device='cuda')
        assert Predictor(tiny).device=='cpu'
    with pytest.raises(EngineError, match='may be run here in'): Predictor(tiny, precision='float16')

def test_precisions(tiny, phantom_files):
    "What the check accepted runs by default, gives the labels of float32, and the same numbers in any company"
    lf = open_learner(tiny)
    want = predict_files(phantom_files, tiny, precision='float32')[0]
    two = np.sort(want, 1)[:,-2:]
    for p in lf.precisions:
        if p!='float32' and p not in supported(): continue
        pred = Predictor(tiny, precision=p)
        got = predict_files(phantom_files, pred)[0]
        assert pred.precision==p and ((got.argmax(1)==want.argmax(1)) | (two[:,1]-two[:,0]<.02)).all()
        assert np.array_equal(predict_files(phantom_files, tiny, precision=p, batch_size=7)[0], got)
    fastest = [p for p in lf.precisions if p=='float32' or (lf.info['precisions'][p]['default'] and p in supported())][0]
    assert Predictor(tiny).precision==fastest

def test_without_openvino(tiny, monkeypatch):
    "float32 runs everywhere; another precision that is asked for says what is missing"
    monkeypatch.setitem(sys.modules, 'openvino', None)
    assert supported()==['float32'] and Predictor(tiny).precision=='float32'
    for p in 'bfloat16','int8':
        with pytest.raises(EngineError, match='float32'): Predictor(tiny, precision=p)

def test_light_import():
    code = "import sys, mednist_fastai.infer, mednist_fastai.sort; print([o for o in ('torch','fastai','timm','pandas','onnxruntime','openvino','matplotlib') if o in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout=='[]\n'

def test_the_first_call_of_openvino_is_alone(tiny, monkeypatch):
    "Two first calls at once, in two threads, can wait for each other for ever: the second waits until the first is back"
    if len(supported())<2: pytest.skip('no OpenVINO, or no more than float32 here')
    monkeypatch.setattr(OpenVino, 'begun', False)
    run,_ = OpenVino(open_learner(tiny).graph, 'float32').runner()
    done = threading.Event()
    t = threading.Thread(target=lambda: (run(np.zeros((3,1,64,64), np.uint8)), done.set()))
    with OpenVino.first:
        t.start()
        assert not done.wait(.5)
    t.join(20)
    assert done.is_set() and OpenVino.begun and not OpenVino.first.locked()
