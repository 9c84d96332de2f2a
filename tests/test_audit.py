"The audit of a data set: flipped labels come first, pages and tables that nobody's file name can break, nothing overwritten"
import csv, json, os, re, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd
import pytest
from PIL import Image
from mednist_fastai.audit import (AUDIT_COLUMNS, AUDIT_KINDS, AuditError, AuditExistsError, audit_folder, audit_index, cross_fit, fold_units,
    pixel_features, rank_labels, save_audit)
from mednist_fastai.data import DataNotFoundError, find_twins, folder_index, get_index

def flip(df, share=.02, seed=0):
    "An index with a share of its labels wrong, and the rows of those"
    rng,names = np.random.default_rng(seed),sorted(set(df.label))
    rows = rng.choice(len(df), round(share*len(df)), replace=False)
    out = df.copy()
    out['label'] = [names[(names.index(l)+rng.integers(1, len(names)))%len(names)] if i in set(rows.tolist()) else l for i,l in enumerate(df.label)]
    return out,rows

def share_found(audit, rows, cut=.025):
    first = audit.ranking.index[:int(cut*len(audit.index))]
    return np.isin(rows, first).mean()

@pytest.fixture(scope='module')
def phantoms(tmp_path_factory):
    from mednist_fastai.phantom import make_phantoms
    return make_phantoms(tmp_path_factory.mktemp('audit')/'p', n=100, seed=3)

@pytest.fixture(scope='module')
def twins(phantoms): return find_twins(phantoms)

@pytest.mark.parametrize('features,least', [('both',.95),('learner',.95),('pixels',.9)]) # phantoms vary more in place and scale than MedNIST, which pixels mind
def test_flipped_phantoms_come_first(phantoms, twins, features, least):
    df,rows = flip(phantoms)
    a = audit_index(df, features, twins=twins)
    assert len(rows)==12 and share_found(a, rows)>=least
    assert set(a.findings.path[a.findings.kind=='wrong label']) >= {twins.rel[i] for i in rows[:1]}
    told = a.table.loc[rows]
    assert (told.predicted.values==phantoms.label.values[rows]).mean()>=least # the suggestion is the label that it had

def test_flipped_mednist_comes_first():
    try: df = get_index('mednist', verify=False)
    except DataNotFoundError: pytest.skip('MedNIST is not here')
    part = df.iloc[::20].reset_index(drop=True)
    part.attrs = dict(df.attrs)
    part,rows = flip(part)
    a = audit_index(part, 'pixels')
    assert len(rows)>50 and share_found(a, rows)>=.95

def test_the_same_audit_twice(phantoms, twins):
    df,_ = flip(phantoms)
    a,b = (audit_index(df, 'pixels', twins=twins) for _ in range(2))
    pd.testing.assert_frame_equal(a.table, b.table)
    pd.testing.assert_frame_equal(a.findings, b.findings)

def test_kin_are_never_judged_by_kin(phantoms, twins, monkeypatch):
    "Files of one group are in one fold: a classifier that knows them never judges one of them"
    df = phantoms.assign(group=[f'g{i%40}' if i%3 else '' for i in range(len(phantoms))])
    df.attrs = phantoms.attrs
    units = fold_units(df, twins)
    assert len(set(units[[i for i in range(len(df)) if i%3 and i%40==7]]))==1
    seen = []
    class Nearest:
        classes_ = np.arange(6)
        def fit(self, x, y): self.x = x; return self
        def predict_proba(self, x): seen.append((set(self.x[:,0]), set(x[:,0]))); return np.full((len(x), 6), 1/6)
        def __getitem__(self, i): return self
    monkeypatch.setattr('mednist_fastai.audit._classifier', lambda *a: Nearest())
    cross_fit(units[:,None], pd.factorize(df.label)[0], units)
    assert len(seen)==5 and all(not a & b for a,b in seen)

def draw(path, seed, size=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.kron(np.random.default_rng(seed).integers(0, 256, (8,8), dtype=np.uint8), np.ones((size//8,size//8), np.uint8))
    Image.fromarray(x).save(path, 'PNG')

NASTY = '<img src=x onerror=alert(1)>&"\'.png', '=HYPERLINK("x").png', '-1.png', '@SUM(1).png', os.fsdecode(b'scan\xff\xfe.png'), '\u202egnp.exe.png', 'line\nbreak.png'

@pytest.fixture
def odd(tmp_path):
    "Two classes, one named like a formula; a copy under the other label, one under the same, names of every kind, and broken files"
    root = tmp_path/'odd'
    for i in range(12):
        draw(root/'=cmd()'/f'{i}.png', i)
        draw(root/'<b>plain'/f'{i}.png', 100+i)
    for i,n in enumerate(NASTY):
        try: draw(root/'<b>plain'/n, 100+i) # a copy of plain/i
        except OSError: pass # not on this file system
    shutil.copy(root/'=cmd()/3.png', root/'<b>plain/two.png')
    (root/'=cmd()/broken.png').write_bytes((root/'=cmd()/3.png').read_bytes()[:40])
    (root/'<b>plain/empty.png').write_bytes(b'')
    return root

def test_what_was_done_is_found(odd, tmp_path):
    a = audit_folder(odd, tmp_path/'out', features='pixels')
    f = a.findings
    assert list(f)==AUDIT_COLUMNS and set(f.kind) <= set(AUDIT_KINDS)
    two = f[f.kind=='two labels']
    assert set(two.path)=={'<b>plain/two.png','=cmd()/3.png'} and set(zip(two.path, two.other))=={(p,o) for p,o in zip(two.path, two.path[::-1])} and (two.distance==0).all()
    assert set(f.path[f.kind=='unreadable'])=={'=cmd()/broken.png','<b>plain/empty.png'} and (f.note[f.kind=='unreadable']!='').all()
    copies = f[f.kind=='exact duplicate']
    assert len(copies)==len(list((odd/'<b>plain').iterdir()))-12-2+1 # each nasty name or its original, and one of the two labels
    assert not a.table.score[a.table.error!=''].notna().any()

def test_no_name_breaks_the_page(odd, tmp_path):
    from html.parser import HTMLParser
    audit_folder(odd, tmp_path/'out', features='pixels')
    page = (tmp_path/'out/audit.html').read_bytes().decode('utf-8') # strict: every byte is text
    tags = []
    class P(HTMLParser):
        def handle_starttag(self, tag, attrs): tags.append((tag, dict(attrs)))
    P().feed(page)
    assert not {t for t,_ in tags} & {'script','link','iframe','object','base','form'} and not [a for _,a in tags if any(k.startswith('on') for k in a)]
    assert all(a['src'].startswith('data:image/jpeg;base64,') for t,a in tags if t=='img') and all(a['href'].startswith('#') for t,a in tags if t=='a')
    assert not re.search(r'(src|href)="?(https?:|//|file:)', page) and '<b>plain' not in page and '&lt;b&gt;plain' in page

def test_no_name_is_a_formula(odd, tmp_path):
    a = audit_folder(odd, tmp_path/'out', features='pixels')
    rows = list(csv.reader(open(tmp_path/'out/audit.csv', encoding='utf-8', newline='')))
    assert rows[0]==AUDIT_COLUMNS and len(rows)==len(a.findings)+1
    assert any(c.startswith("'=cmd()") for r in rows for c in r) and not [c for r in rows[1:] for c in r if c[:1] in tuple('=+-@\t\r')]

def test_nothing_of_others_is_overwritten(odd, tmp_path):
    out = tmp_path/'out'
    run = lambda dst=out, src=odd: audit_folder(src, dst, features='pixels')
    run(); before = (out/'audit.csv').read_bytes()
    run() # an audit of the same folder may take its place
    assert (out/'audit.csv').read_bytes()==before and sorted(o.name for o in out.iterdir())==['audit.csv','audit.html']
    other = tmp_path/'other'
    shutil.copytree(odd, other)
    with pytest.raises(AuditExistsError, match='another folder'): run(src=other)
    (out/'audit.csv').write_bytes(before+b'looked at\n')
    with pytest.raises(AuditExistsError, match='was changed'): run()
    assert (out/'audit.csv').read_bytes()==before+b'looked at\n'
    (out/'audit.html').unlink()
    with pytest.raises(AuditExistsError, match='without an audit'): run()
    for i,text in enumerate(['<p>mine</p>', '', '<meta name="mednist-audit" content="[]">', '<meta name="mednist-audit" content="{">']):
        (tmp_path/f'm{i}').mkdir(); (tmp_path/f'm{i}/audit.html').write_text(text)
        with pytest.raises(AuditExistsError, match='not written by an audit'): run(tmp_path/f'm{i}')
        assert (tmp_path/f'm{i}/audit.html').read_text()==text and not (tmp_path/f'm{i}/audit.csv').exists()
    (tmp_path/'file').write_text('mine')
    with pytest.raises(AuditExistsError, match='not a folder'): run(tmp_path/'file')
    (tmp_path/'d/audit.html').mkdir(parents=True)
    with pytest.raises(AuditExistsError): run(tmp_path/'d')
    for inside in (odd, odd/'=cmd()'):
        with pytest.raises(AuditExistsError, match='holds images'): run(inside)

def test_the_audited_folder_is_left_as_it_is(odd, tmp_path):
    look = lambda: {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(odd.rglob('*'))}
    before = look()
    audit_folder(odd, tmp_path/'out', features='pixels')
    assert look()==before

def test_small_and_poor_folders(tmp_path):
    "Too few images to judge a label by: said, not fatal"
    for i in range(8): draw(tmp_path/'a/x'/f'{i}.png', i)
    for i in range(2): draw(tmp_path/'a/rare'/f'{i}.png', 50+i)
    a = audit_folder(tmp_path/'a', tmp_path/'out', features='pixels')
    assert set(a.how['not_judged'])=={'rare','x'} and a.counts['wrong label']==0 and 'Not judged' in (tmp_path/'out/audit.html').read_text()
    draw(tmp_path/'one/x/0.png', 0)
    assert sum(audit_folder(tmp_path/'one', tmp_path/'out1').counts.values())==0
    for i in range(3): (tmp_path/f'bad/x').mkdir(parents=True, exist_ok=True); (tmp_path/f'bad/x/{i}.png').write_bytes(b'no')
    assert audit_folder(tmp_path/'bad', tmp_path/'out2').counts['unreadable']==3

def test_refusals(phantoms, monkeypatch):
    with pytest.raises(AuditError, match='one finding at a time'): audit_index(phantoms.assign(label=['a|b', *phantoms.label[1:]]))
    with pytest.raises(AuditError, match='learner'): audit_index(phantoms, 'colours')
    with pytest.raises(AuditError, match='folds'): audit_index(phantoms, folds=1)
    monkeypatch.setitem(sys.modules, 'cleanlab', None)
    with pytest.raises(AuditError, match=re.escape("pip install 'mednist_fastai[audit]'")): audit_index(phantoms)

def test_a_learner_that_has_seen_the_images_is_named(phantoms, tiny, twins):
    from mednist_fastai.learner import open_learner
    from mednist_fastai.audit import _seen
    lf = open_learner(tiny)
    assert 'trained on images of phantom' in _seen(lf, phantoms)
    own = phantoms.copy(); own.attrs = phantoms.attrs | dict(digest=lf.info['record']['data']['digest'])
    assert 'these very files' in _seen(lf, own)
    other = phantoms.assign(source='ward'); other.attrs = phantoms.attrs | dict(source='ward')
    assert _seen(lf, other)==''
    assert 'mednist' in _seen(open_learner(), other.assign(source='mednist'))

def test_the_command(odd, tmp_path):
    script = tmp_path/'mednist-audit' # what an installer makes of the entry in settings.ini
    script.write_text("import sys\nfrom mednist_fastai.cli import mednist_audit\nif __name__=='__main__': sys.exit(mednist_audit())\n")
    cmd = lambda *a: subprocess.run([sys.executable, script, *map(str, a)], capture_output=True, text=True, cwd=tmp_path)
    p = cmd(odd, '--features', 'pixels')
    assert p.returncode==0 and 'files of one image under two labels:' in p.stdout and not p.stderr, p.stderr
    assert sorted(o.name for o in (tmp_path/'audit').iterdir())==['audit.csv','audit.html']
    assert cmd(odd, '--features', 'pixels', '--strict').returncode==3
    (tmp_path/'audit/audit.html').write_text('mine')
    p = cmd(odd, '--features', 'pixels')
    assert p.returncode==1 and len(p.stderr.splitlines())==1 and 'not written by an audit' in p.stderr
