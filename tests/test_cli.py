"The commands as processes: help, exit codes, one line an error, and the README's own lines"
import re, shutil, subprocess, sys
from pathlib import Path
import pandas as pd
import pytest

bin = Path(sys.executable).parent
root = Path(__file__).parent.parent

def cmd(name, *args, **kw): return subprocess.run([bin/f'mednist-{name}', *map(str, args)], capture_output=True, text=True, **kw)

@pytest.mark.parametrize('name', ['data','audit','train','compare','sort','explain','demo'])
def test_help(name):
    p = cmd(name, '--help')
    assert p.returncode==0 and p.stdout.startswith(f'usage: mednist-{name}') and not p.stderr

def _one_line(p, code, *words):
    assert p.returncode==code and len(p.stderr.strip().splitlines())==1 and 'Traceback' not in p.stderr, p.stderr
    for w in words: assert w in p.stderr

def test_errors_are_one_line(lab, tiny, tmp_path):
    _one_line(cmd('sort', tmp_path, tmp_path/'out', tmp_path/'none'), 1, 'mednist-sort', 'no such folder')
    _one_line(cmd('sort', tmp_path/'none', tmp_path/'out', tiny), 1, 'none')
    _one_line(cmd('data', tmp_path/'none'), 1, 'none')
    _one_line(cmd('train', '--recipe', tmp_path/'none.json'), 1, 'none.json')
    assert cmd('sort').returncode == 2
    for i,bad in enumerate((['--arch','resnet43'], ['--policy','x-ray'])):
        _one_line(cmd('train', '--out', tmp_path/f'run{i}', '--source', lab/'phantoms', '--size', 16, *bad), 1, bad[1])

def test_sort_exit_codes_and_strict(tiny, phantom_files, tmp_path):
    (tmp_path/'in').mkdir()
    for i,f in enumerate(phantom_files[::30]): shutil.copy(f, tmp_path/f'in/{i}.png')
    (tmp_path/'in/broken.jpg').write_bytes(b'\xff\xd8\xff')
    p = cmd('sort', tmp_path/'in', tmp_path/'out', tiny)
    assert p.returncode==0 and '1 of 11 files stayed' in p.stdout and 'unreadable' in p.stdout, p.stdout+p.stderr
    assert cmd('sort', tmp_path/'in', tmp_path/'out', tiny, '--strict', '--quiet').returncode == 3
    assert (pd.read_csv(tmp_path/'out/report.csv').status=='sorted').sum() == 10

@pytest.mark.parametrize('args', [['--batch-size',0],['--workers',0],['--frame',-1],['--per-finding','symlink'],['--window','1.5'],['--window','1,2,3']], ids=lambda o: f'{o[0]}={o[1]}')
def test_senseless_arguments(tiny, tmp_path, args):
    "One line, exit code 2, as arguments that the parser refuses; nothing is made"
    (tmp_path/'in').mkdir()
    _one_line(cmd('sort', tmp_path/'in', tmp_path/'out', tiny, f'{args[0]}={args[1]}'), 2, args[0])
    assert not (tmp_path/'out').exists()

def test_senseless_arguments_of_train(lab, tmp_path):
    for o in ['--bs',0],['--epochs',-1],['--size',0],['--task','both'],['--uncertain','maybe']:
        _one_line(cmd('train', '--out', tmp_path/'run', '--source', lab/'phantoms', f'{o[0]}={o[1]}'), 2, o[0])
    assert not (tmp_path/'run').exists()

def test_sort_many_findings(tmp_path):
    from test_sort_multilabel import draw, make_learner
    lf = make_learner(tmp_path/'halves')
    for i in range(4): draw(tmp_path/f'in/{i}', 220*(i%2), 220*(i//2), i)
    p = cmd('sort', tmp_path/'in', tmp_path/'out', lf, '--per-finding', 'link')
    assert p.returncode==0 and 'No Finding' in p.stdout and 'Right' in p.stdout, p.stderr
    assert {o.name:len(list(o.iterdir())) for o in (tmp_path/'out').iterdir() if o.is_dir() and o.name[0]!='.'}=={'Finding':3, 'No Finding':1, 'Left':2, 'Right':2, 'Top':1}
    _one_line(cmd('sort', tmp_path/'in', tmp_path/'out', lf), 1, 'stay complete')
    _one_line(cmd('sort', tmp_path/'in', tmp_path/'out2', lf, '--risk', '.01'), 1, 'no confidence is known')

def test_sort_dicom_window(tiny, tmp_path):
    import pydicom.data
    (tmp_path/'in').mkdir()
    shutil.copy(Path(pydicom.data.__file__).parent/'test_files/CT_small.dcm', tmp_path/'in/IM1')
    for i,w in enumerate(['lung','-600,1500','brain']):
        p = cmd('sort', tmp_path/'in', tmp_path/f'out{i}', tiny, f'--window={w}', '--frame=0', '--strict', '--quiet')
        assert p.returncode==0 and (pd.read_csv(tmp_path/f'out{i}/report.csv').status=='sorted').all(), p.stderr
    _one_line(cmd('sort', tmp_path/'in', tmp_path/'out0', tiny, '--window=bone', '--frame=0'), 1, 'window=lung')
    _one_line(cmd('sort', tmp_path/'in', tmp_path/'out9', tiny, '--window=long'), 2, 'long')

def test_data_holds_sources_out(lab, monkeypatch, capsys):
    from mednist_fastai import cli, data
    _one_line(cmd('data', lab/'phantoms', '--split', 'sources', '--hold', 'nobody,else'), 1, 'nobody')
    _one_line(cmd('data', lab/'phantoms', '--split', 'sources'), 1, 'hold')
    real = data.get_index
    def two(*args, **kw):
        df = real(*args, **kw)
        df['source'] = ['a' if i%5 else 'b' if i%2 else 'c' for i in range(len(df))]
        return df
    monkeypatch.setattr(data, 'get_index', two)
    cli.mednist_data(str(lab/'phantoms'), split='sources', hold='b,c')
    rows = [o.split() for o in capsys.readouterr().out.splitlines() if o.startswith('Hand')]
    assert rows==[['Hand','10','36','4']] # test, train, valid

def test_figures_of_many_findings_are_shown(capsys):
    "Those that could not be computed, too"
    from mednist_fastai.cli import _show_metrics
    rows = [dict(label='Edema', support=3, n=20, auroc=.87654, auroc_interval=[.7,.95], precision=.5, recall=1.), dict(label='Mass', support=0, n=20, auroc=None, auroc_interval=None, precision=0., recall=0.)]
    _show_metrics(dict(metrics=[dict(source='x', split='test', n=20, auroc=.87654, auroc_interval=None, average_precision=.6, findings=rows)]))
    assert capsys.readouterr().out.splitlines()==['x, test: 20 images, mean AUROC 87.65 %, mean average precision 60.00 %',
        'Edema: 3 of 20, AUROC 87.65 % (95 % interval 70.00 to 95.00 %), precision 50.00 %, recall 100.00 %', 'Mass: 0 of 20, AUROC not known, precision 0.00 %, recall 0.00 %']

def test_data_prints_counts_and_audit(lab):
    p = cmd('data', lab/'phantoms', '--split', 'random', '--audit')
    assert p.returncode==0 and 'split digest' in p.stdout and 'nearest training image' in p.stdout, p.stderr

def test_train_then_sort(lab, tmp_path):
    p = cmd('train', tmp_path/'run') # a stray argument is a usage error, not a run
    assert p.returncode == 2
    p = cmd('train', '--out', tmp_path/'run', '--source', lab/'phantoms', '--arch', 'test_resnet', '--size', 32, '--epochs', 2, '--lr', '5e-3', '--bs', 32, '--float32', '--quiet')
    assert p.returncode==0 and 'learner saved' in p.stdout, p.stderr
    assert {'record.json','history.csv','confusion.png','top_losses.png','learner'} <= {o.name for o in (tmp_path/'run').iterdir()}
    assert 'synthetic phantoms, no patients' in (tmp_path/'run/learner/README.md').read_text() # a learner of phantoms says so
    _one_line(cmd('train', '--out', tmp_path/'run', '--source', lab/'phantoms', '--epochs', 3), 1, 'another recipe')

def test_compare_is_a_gate(lab, tiny, tmp_path):
    "0 for the same learner, 3 for one that is clearly worse, 1 for classes it does not know"
    from mednist_fastai.data import get_index, make_split
    from mednist_fastai.learner import save_learner
    from mednist_fastai.train import Recipe, train
    df = make_split(get_index(lab/'phantoms'), 'random', seed=0)
    learn,record = train(Recipe('poor', arch='test_resnet', size=32, epochs=1, lr=1e-5, cache=False), df, path=tmp_path, bar=False)
    save_learner(learn, tmp_path/'poor/learner', record, precisions=())
    p = cmd('compare', tiny, tiny, lab/'phantoms')
    assert p.returncode==0 and '0 broken, 0 mended' in p.stdout and 'passed' in p.stdout, p.stderr
    p = cmd('compare', tiny, tmp_path/'poor/learner', lab/'phantoms', '--figure', tmp_path/'changed.png')
    assert p.returncode==3 and 'FAILED' in p.stdout and (tmp_path/'changed.png').stat().st_size > 1000
    assert cmd('compare', tmp_path/'poor/learner', tiny, lab/'phantoms').returncode == 0
    for i in range(12): (tmp_path/'odd/Spine').mkdir(parents=True, exist_ok=True); shutil.copy(next((lab/'phantoms/CXR').glob('*.png')), tmp_path/f'odd/Spine/{i}.png')
    _one_line(cmd('compare', tiny, tiny, tmp_path/'odd'), 1, 'Spine')

def _blocks(lang): return re.findall(rf'```{lang}\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S)

def test_the_lines_of_the_readme_run(lab, tmp_path):
    "The researcher's and the teammate's lines, as printed, on phantoms and a small network"
    team,research = _blocks('python')[:2]
    code = research.replace("get_index('mednist')", f"get_index({str(lab/'phantoms')!r})").replace("'resnet34'", "'test_resnet'").replace('fit_one_cycle(3', 'fit_one_cycle(1')
    assert code.count('test_resnet')==1 and 'phantoms' in code
    shutil.copytree(lab/'phantoms', tmp_path/'inbox')
    p = subprocess.run([sys.executable, '-c', 'import matplotlib; matplotlib.use("agg")\n'+code+team+'\nprint(len(report))'], capture_output=True, text=True, cwd=tmp_path)
    assert p.returncode==0, p.stderr[-2000:]
    assert int(p.stdout.split()[-1]) >= 300 and (tmp_path/'sorted/report.csv').exists()
