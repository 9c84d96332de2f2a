"The tree is what it says it is: metadata, notebooks, exports, imports"
import ast, json, os, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if 'checkpoint' not in str(p))
# an absolute path in an output tells where it was run and means nothing to a reader
home = re.compile(r'(?<![\w.:/~$}])/(?:home|root|Users|work|tmp|var/folders)/[\w.]')

def _cells(p): return [c for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code' and ''.join(c['source']).strip()]

def _text(outputs):
    for o in outputs:
        yield from ([''.join(o['text'])] if 'text' in o else [])
        yield from (''.join(v) for k,v in o.get('data', {}).items() if k.startswith('text/'))

@pytest.mark.parametrize('p', notebooks, ids=lambda p: p.stem)
def test_notebook_is_executed_and_clean(p):
    cells = _cells(p)
    assert p.stat().st_size < 1_000_000
    assert any(c['outputs'] for c in cells), 'no outputs: a reviewer would see an empty page'
    for c in cells:
        assert not any(o['output_type']=='error' for o in c['outputs']), ''.join(c['source'])
        for t in _text(c['outputs']):
            assert 'Warning:' not in t and 'Traceback' not in t and '█' not in t, t
            assert not home.search(t), t

@pytest.mark.parametrize('p', [p for p in notebooks if p.parent.name=='nbs' and p.stem!='index'], ids=lambda p: p.stem)
def test_notebook_teaches(p):
    "A title, a subtitle, an exported module, short cells, and an assertion"
    nb = json.loads(p.read_text(encoding='utf-8'))['cells']
    md = [''.join(c['source']) for c in nb if c['cell_type']=='markdown']
    assert md[0].startswith('# ') and '\n> ' in md[0]
    src = [''.join(c['source']) for c in _cells(p)]
    assert any(s.startswith('#| default_exp') for s in src)
    assert all(len(s.splitlines())<=50 for s in src if s.startswith('#| export'))
    assert any(re.search(r'\btest_\w+\(|\bassert\b|expect_fail', s) for s in src)

def _public(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    return [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]

modules = sorted((root/'mednist_fastai').glob('*.py'))

@pytest.mark.parametrize('p', modules, ids=lambda p: p.stem)
def test_public_names_are_documented(p):
    assert not [n.name for n in _public(p) if not ast.get_docstring(n)]

order = '''images data sources phantom render outliers augment corrupt blocks models train interpret trust engines strangers learner infer assure evaluate
    audit robust explain sort search store retrain cli'''.split()

@pytest.mark.parametrize('p', [p for p in modules if p.stem in order], ids=lambda p: p.stem)
def test_imports_go_one_way(p):
    "At import, a module takes only from modules before it; `learner` takes from `train` inside the function that saves"
    tree = ast.parse(p.read_text(encoding='utf-8'))
    used = {n.module.split('.')[-1] for n in tree.body if isinstance(n, ast.ImportFrom) and (n.level or (n.module or '').startswith('mednist_fastai'))}
    assert {u for u in used if u in order and order.index(u) >= order.index(p.stem)} == set()

def _loaded(code):
    "Which heavy packages `code` leaves loaded, in a fresh process"
    heavy = 'torch fastai timm pandas matplotlib sklearn onnxruntime openvino'.split()
    out = subprocess.run([sys.executable, '-c', f'{code}\nimport sys; print([m for m in {heavy!r} if m in sys.modules])'], capture_output=True, text=True, check=True, cwd=root)
    return ast.literal_eval(out.stdout.splitlines()[-1])

def test_package_import_is_light(): assert _loaded('import mednist_fastai') == []
def test_cli_import_is_light(): assert _loaded('import mednist_fastai.cli') == []
def test_switching_learners_takes_no_torch(): assert not {'torch','fastai','timm'} & set(_loaded('from mednist_fastai.retrain import history, promote, rollback'))
def test_sorting_never_loads_the_training_side(): assert not {'torch','fastai','timm'} & set(_loaded('from mednist_fastai import classify_folder'))

def test_the_sort_command_stays_light(tmp_path):
    "A whole run loads no more than an engine: neither the training side nor pandas"
    from PIL import Image
    (tmp_path/'src').mkdir()
    Image.new('L', (64,64), 90).save(tmp_path/'src/a.png')
    code = f'from mednist_fastai.cli import mednist_sort; mednist_sort({str(tmp_path/"src")!r}, {str(tmp_path/"dst")!r}, quiet=True)'
    assert set(_loaded(code)) <= {'onnxruntime','openvino'} and (tmp_path/'dst/report.csv').exists()

def test_all_gives_fastai_and_ours():
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', 'from mednist_fastai.all import *; print(DataBlock, Learner, timm_learner, classify_folder, run.__module__, Recipe, get_index)'],
                         capture_output=True, text=True, cwd=root)
    assert out.returncode==0 and 'mednist_fastai.evaluate' in out.stdout, out.stderr

def test_metadata_is_read_from_settings():
    import importlib.metadata as m
    cfg = ConfigParser(delimiters=['=']); cfg.read(root/'settings.ini')
    want = {re.split(r'[>=<\[ ]', l.strip())[0].lower() for l in cfg['DEFAULT']['requirements'].splitlines() if l.strip()}
    have = {re.split(r'[>=<\[ ;]', r)[0].lower() for r in m.requires('mednist_fastai') if 'extra ==' not in r}
    assert want==have
    scripts = {e.name for e in m.entry_points(group='console_scripts') if e.value.startswith('mednist_fastai')}
    assert {'mednist-data','mednist-audit','mednist-train','mednist-sort','mednist-explain','mednist-search','mednist-store','mednist-retrain','mednist-demo'} <= scripts

def test_pictures_of_the_readme():
    "They are there, those of the page say what they show, and are small"
    found = re.findall(r'!\[(.*?)\]\((\S+)\)', (root/'README.md').read_text(encoding='utf-8'))
    page = [(text,root/at) for text,at in found if '/page-' in at]
    assert len(page)==3 and all(len(text)>20 and at.stat().st_size<150_000 for text,at in page) and all((root/at).exists() for _,at in found)
