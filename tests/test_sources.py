"Sources with tables and arrays: CheXpert's and NIH's layouts, drawn findings, Kvasir, tables of one's own, MedMNIST; real sets if at hand"
import os, re, shutil, zipfile
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from conftest import put
from mednist_fastai import data, sources
from mednist_fastai.data import *
from mednist_fastai.sources import *

@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A fastai home of the test's own, no medmnist folder and no environment variable"
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    monkeypatch.setenv('HOME', str(tmp_path/'user'))
    monkeypatch.delenv(DATA_ENV, raising=False)
    return tmp_path/'home'

# --- CheXpert

HEAD = ('Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,'
    'Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices')
TRAIN = ['{}/train/patient99991/study1/view1_frontal.jpg,Female,50,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0',
    '{}/train/patient99992/study2/view1_frontal.jpg,Male,61,Frontal,PA,,,-1.0,1.0,,-1.0,,,,0.0,-1.0,,1.0,',
    '{}/train/patient99992/study1/view2_lateral.jpg,Male,60,Lateral,,,,1.0,,,,-1.0,,,,,,,']
VALID = ['{}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0']

def chexpert(folder, name='CheXpert-v1.0-small'):
    "Rows as the authors write them, in a folder `folder`, whose table calls it `name`"
    for part,rows in (('train', TRAIN), ('valid', VALID)):
        for r in rows: put(folder, r.split(',')[0].split('/', 1)[1])
        (folder/f'{part}.csv').write_text('\n'.join([HEAD, *(r.format(name) for r in rows)])+'\n')
    return folder

@pytest.mark.parametrize('name', ['CheXpert-v1.0-small', 'CheXpert-v1.0'])
def test_chexpert(tmp_path, name):
    root = chexpert(tmp_path/name, name)
    df = get_index('chexpert', tmp_path)
    assert list(df.columns)==['path','label','split','group','source','uncertain','view','projection','sex','age']
    assert relative_paths(df)==[r.split(',')[0].split('/', 1)[1] for r in (TRAIN[0], TRAIN[2], TRAIN[1], VALID[0])]
    assert df.label.tolist()==['Support Devices', 'Cardiomegaly', 'Fracture|Lung Opacity', 'Cardiomegaly|Enlarged Cardiomediastinum|Lung Opacity']
    assert df.uncertain.tolist()==['', 'Consolidation', 'Cardiomegaly|Edema|Pleural Effusion', '']
    assert df.split.tolist()==['train']*3+['valid'] and df.group.tolist()==['patient99991','patient99992','patient99992','patient64541']
    assert df[['view','projection','sex','age']].values.tolist()[1]==['Lateral','','Male','60'] and set(df.source)=={'chexpert'}
    assert get_index('chexpert', root).equals(df) and df[df.view=='Frontal'].attrs==df.attrs and df.attrs['left_out']=={}

def test_chexpert_official_split(tmp_path):
    "Its validation lacks some findings, and stays what it is"
    chexpert(tmp_path/'CheXpert-v1.0-small')
    (tmp_path/'CheXpert-v1.0-small/train.csv').write_text('\n'.join([HEAD, *(r.format('x') for r in TRAIN), TRAIN[2].format('x').replace('study1', 'study3').replace(',,,,,,,', ',1.0,,,,,,')])+'\n')
    put(tmp_path/'CheXpert-v1.0-small', 'train/patient99992/study3/view2_lateral.jpg')
    df = get_index('chexpert', tmp_path)
    df.loc[df.split=='valid', 'label'] = 'Cardiomegaly'
    out = make_split(df, 'official')
    assert out.split.tolist()==df.split.tolist() and out.attrs['split']['counts']=={'train': 4, 'valid': 1, 'test': 0, '': 0}

def test_chexpert_in_a_folder_of_another_name(tmp_path):
    chexpert(tmp_path/'mine')
    assert len(get_index('chexpert', tmp_path/'mine'))==4
    os.unlink(tmp_path/'mine'/'valid.csv') # some hold the training part alone
    shutil.rmtree(tmp_path/'mine'/'valid')
    assert set(get_index('chexpert', tmp_path/'mine').split)=={'train'}

def test_chexpert_partial(tmp_path):
    root = chexpert(tmp_path/'CheXpert-v1.0-small')
    shutil.rmtree(root/'train'/'patient99992')
    with pytest.raises(DataCorruptError, match='2 of them are not there, such as train/patient99992/.*partial=True'): get_index('chexpert', tmp_path)
    df = get_index('chexpert', tmp_path, partial=True)
    assert len(df)==2 and df.attrs['left_out']['not there']['count']==2
    shutil.rmtree(root/'train'), shutil.rmtree(root/'valid')
    with pytest.raises(DataCorruptError, match='4 of them are not there'): get_index('chexpert', tmp_path, partial=True)

@pytest.mark.parametrize('old,new,what', [(',Male,61,Frontal,PA,,,-1.0', ',Male,61,Frontal,PA,,,2.0', "such as '2.0' in row 3, column Cardiomegaly"),
    ('patient99992/study2', 'someone/study2', 'no patient in the path'), ('Fracture,', 'Fractures,', 'no column Fracture'),
    ('study2/view1', 'study1/view2_lateral.jpg/../../study2/view1', 'not there')])
def test_chexpert_table_that_is_odd(tmp_path, old, new, what):
    root = chexpert(tmp_path/'CheXpert-v1.0-small')
    (root/'train.csv').write_text((root/'train.csv').read_text().replace(old, new))
    with pytest.raises(DataCorruptError, match=what): get_index('chexpert', tmp_path)

def test_chexpert_is_not_fetched(monkeypatch):
    monkeypatch.setattr(data, 'download', lambda *a, **k: pytest.fail('a download was tried'))
    for name,where in (('chexpert', 'stanfordmlgroup'), ('kvasir', 'kvasir-dataset-v2.zip'), ('pbc8', 'snkd93bnjr'), ('chestxray14', 'nihcc')):
        with pytest.raises(DataNotFoundError, match=f'nothing was downloaded(?s:.*){where}'): get_index(name)

# --- drawn findings

def test_make_findings(tmp_path):
    df = make_findings(tmp_path/'a', n=150, seed=3)
    assert len(df)==150 and set(df.source)=={'phantom'} and df.attrs['source']=='phantom' and set(df.split)=={'train','valid'}
    assert (df.groupby('group').split.nunique()==1).all() and df.group.value_counts().max()>1 and set(df.view)=={'Frontal','Lateral'}
    assert set('|'.join(df.label).split('|'))-{''}=={'Atelectasis','Cardiomegaly','Consolidation','Edema','Lung Lesion','Lung Opacity',
        'Pleural Effusion','Pneumothorax','Support Devices'} and (df.label=='').any()
    assert (df.uncertain!='')[df.split=='train'].any() and not (df.uncertain!='')[df.split=='valid'].any()
    assert not any(set(a.split('|'))&set(b.split('|'))-{''} for a,b in zip(df.label, df.uncertain))
    both = {g: set(o.label) for g,o in df.assign(study=df.path.map(os.path.dirname)).groupby('study')}
    assert all(len(o)==1 for o in both.values()) # views of a study share its findings
    assert make_findings(tmp_path/'b', n=150, seed=3).label.tolist()==df.label.tolist()!=make_findings(tmp_path/'c', n=150, seed=4).label.tolist()
    assert {p.relative_to(tmp_path/'a'): p.read_bytes() for p in (tmp_path/'a').rglob('*.*')}=={
        p.relative_to(tmp_path/'b'): p.read_bytes() for p in (tmp_path/'b').rglob('*.*')}
    table = pd.read_csv(tmp_path/'a'/'train.csv', dtype=str)
    assert ','.join(table.columns)==HEAD and set(np.unique(table.iloc[:,5:].fillna('').to_numpy().astype(str)))=={'','0.0','1.0','-1.0'}
    assert set(table['No Finding'].dropna())=={'1.0'} and table.Path.str.match(r'CheXpert-v1\.0-small/train/patient\d{5}/study\d/view\d_(frontal|lateral)\.jpg$').all()
    put(tmp_path/'other', 'x.png')
    with pytest.raises(DataError, match='new or empty folder'): make_findings(tmp_path/'other')
    assert len(make_findings(tmp_path/'a', n=150, seed=3))==150 and sorted(o.name for o in tmp_path.iterdir())==['a','b','c','other']

def test_findings_can_be_seen():
    "Each finding changes the pixels, and where the finding is"
    from mednist_fastai.phantom import phantom_images
    img,t = phantom_images('CXR', 1, 0, 64)[0],(np.arange(64)+.5)/32-1
    for o in sources._drawn:
        new = sources._draw_finding(img.astype(float), o, t[None], t[:,None], 1, np.full(3, .5))
        assert new.shape==(64,64) and 15<(np.abs(new-img)>15).sum()<2000, o

# --- NIH's full release

NIH = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],'
    'OriginalImagePixelSpacing[x,y],')

@pytest.mark.parametrize('table', ['Data_Entry_2017_v2020.csv', 'Data_Entry_2017.csv'])
@pytest.mark.parametrize('folders', [('images_001/images', 'images_002/images'), ('images', 'images')])
def test_nih_release(tmp_path, table, folders):
    root = tmp_path/'ChestX-ray14'
    rows = [('00000001_000.png','Mass|Effusion',1,0), ('00000001_001.png','No Finding',1,0), ('00000002_000.png','Hernia',2,1)]
    for n,_,_,i in rows: put(root, f'{folders[i]}/{n}')
    (root/table).write_text('\n'.join([NIH, *(f'{n},{l},0,{p},058,M,PA,2682,2749,0.143,0.143,' for n,l,p,_ in rows)]))
    assert get_index('chestxray14', tmp_path).split.tolist()==['']*3
    (root/'train_val_list.txt').write_text('00000002_000.png')
    (root/'test_list.txt').write_text('00000001_000.png\n00000001_001.png\n')
    df = get_index('chestxray14', root)
    assert df.label.tolist()==['Effusion|Mass','','Hernia'] and df.split.tolist()==['test','test','train'] and df.group.tolist()==['1','1','2']
    assert list(df.columns)==['path','label','split','group','source','projection','sex','age'] and df.attrs['left_out']=={}
    assert relative_paths(df)[2]==f'{folders[1]}/00000002_000.png'
    os.unlink(df.path[0])
    with pytest.raises(DataCorruptError, match='1 of them are not there, such as images/00000001_000.png'): get_index('chestxray14', root)
    assert len(get_index('chestxray14', root, partial=True))==2

def test_no_finding_wants_its_share():
    "Files without a finding go to test and validation too, unlike before there was a name for them"
    df = pd.DataFrame(dict(path=[f'/x/{i:03}.png' for i in range(200)], label=['', 'A', 'A|B', 'B', '']*40, split='', group='', source='s'))
    df.attrs['root'] = '/x'
    n = make_split(df).groupby(['label','split']).size()
    assert n['','test']==n['','valid']==8
    df.label = ['A']*199+['']
    with pytest.raises(SplitError, match='no finding would have none in'): make_split(df)

# --- class folders in colour

@pytest.mark.parametrize('name,folder,n', [('kvasir','kvasir-dataset-v2','1,000'), ('kvasir_v1','kvasir-dataset','500')])
def test_kvasir(tmp_path, name, folder, n):
    put(tmp_path/folder, *(f'{c}/{i}.jpg' for c in KVASIR_CLASSES for i in range(2)), mode='RGB')
    df = get_index(name, tmp_path, verify=False)
    assert df.label.value_counts().to_dict()==dict.fromkeys(KVASIR_CLASSES, 2) and set(df.source)=={name} and len(KVASIR_CLASSES)==8
    assert get_index(name, tmp_path/folder, verify=False).equals(df)
    with pytest.raises(DataCorruptError, match=f'polyps: 2 files, expected {n}'): get_index(name, tmp_path)
    with pytest.raises(DataError, match='class folders'): get_index(name, tmp_path, partial=True)
    shutil.make_archive(str(tmp_path/'packs'/folder), 'zip', tmp_path, folder)
    got = get_index(name, tmp_path/'packs'/f'{folder}.zip', verify=False)
    assert Path(got.attrs['root'])==fastai_folder()/folder and len(got)==16
    assert (SOURCES[name].mode,SOURCES[name].policy)==('RGB','endoscopy')

def test_records():
    "Every record is whole, and its policy is one that exists"
    from mednist_fastai.augment import POLICIES
    for k,o in SOURCES.items():
        assert o.name==k and o.folder and o.archive and o.licence and o.citation and o.counts and o.policy in POLICIES and o.mode in ('L','RGB')
        assert re.fullmatch(r'([0-9a-f]{32})?', o.md5) and re.fullmatch(r'([0-9a-f]{64})?', o.digest)

# --- tables

@pytest.fixture
def clinic(tmp_path):
    put(tmp_path/'clinic', *(f'scans/{i}.png' for i in range(6)))
    return tmp_path/'clinic'

def table(folder, *rows, name='t.csv'):
    (folder/name).write_text('\n'.join(rows), encoding='utf-8')
    return folder/name

def test_csv(clinic):
    t = table(clinic, 'path,label,split,group,age', 'scans/3.png,cat,Validation,p1,7', 'scans/1.png,dog,,p2,8', 'scans/10.png,dog,train,p2,9')
    put(clinic, 'scans/10.png')
    df = get_index(t)
    assert list(df.columns)==['path','label','split','group','source'] and relative_paths(df)==['scans/1.png','scans/10.png','scans/3.png']
    assert df.split.tolist()==['','train','valid'] and df.group.tolist()==['p2','p2','p1'] and set(df.source)=={'t'}==set([df.attrs['source']])
    assert csv_index(t, keep=['age'], name='mine').iloc[0][['source','age']].tolist()==['mine','8']
    assert get_index('t.csv', clinic).equals(df) and get_index(t, groups=r'(\d)\d*\.png').group.tolist()==['1','1','3']
    assert csv_index(t, group='age').group.tolist()==['8','9','7']
    assert index_digest(get_index(shutil.copytree(clinic, clinic.parent/'b')/'t.csv'))==df.attrs['digest']

def test_csv_elsewhere(clinic):
    "A table apart from its files, with absolute paths, with tabs, with several findings"
    (clinic.parent/'tables').mkdir()
    t = table(clinic.parent/'tables', f'path\tlabel', f'{clinic}/scans/1.png\tMass, Edema', f'{clinic}/scans/0.png\tnormal', name='a.tsv')
    df = csv_index(t, sep=',', none='normal', root=clinic)
    assert df.label.tolist()==['','Edema|Mass'] and relative_paths(df)==['scans/0.png','scans/1.png']
    t = table(clinic.parent/'tables', 'path,label', 'scans/1.png,cat')
    assert relative_paths(csv_index(t, root=clinic))==['scans/1.png']
    with pytest.raises(DataCorruptError, match=r'pass root= for another'): csv_index(t)
    assert csv_index(table(clinic, 'path,label', 'scans/1.png,"cat, tabby"'), sep='').label.tolist()==['cat, tabby']

def test_csv_one_column_a_finding(clinic):
    t = table(clinic, 'path,B,A,x', 'scans/0.png,1,1.0,', 'scans/1.png,-1,,', 'scans/2.png, 0 ,-1.0,')
    df = csv_index(t, label=['B','A'])
    assert df.label.tolist()==['A|B','',''] and df.uncertain.tolist()==['','B','A'] and list(df.columns)[-1]=='uncertain'

@pytest.mark.parametrize('rows,kw,error,what', [
    (['path,label'], {}, DataCorruptError, 'names no files'), (['file,label', 'scans/0.png,a'], {}, DataCorruptError, 'no column path. It has: file, label'),
    (['path,label', 'scans/0.png,a', 'scans/7.png,a'], {}, DataCorruptError, '2 files; 1 of them are not there, such as .*7.png'),
    (['path,label', ',a'], {}, DataCorruptError, 'not there'), (['path,label', 'scans,a'], {}, DataCorruptError, 'not there'),
    (['path,label', 'scans/0.png,a', './scans/0.png,b'], {}, DataCorruptError, '1 files more than once'),
    (['path,label,split', 'scans/0.png,a,holdout'], {}, DataCorruptError, "unknown splits 'holdout'. Known: train"),
    (['path,label', 'scans/0.png,a'], dict(split='part'), DataCorruptError, 'no column part'),
    (['path,label', 'scans/0.png,', 'scans/1.png,a'], {}, DataCorruptError, 'no label, such as row 2'),
    (['path,label', 'scans/0.png,a|b;c'], dict(sep=';'), DataError, 'can not hold |'),
    (['path,a|b', 'scans/0.png,1'], dict(label=['a|b']), DataError, 'can not have |'),
    (['path,a,b', 'scans/0.png,1,yes', 'scans/1.png,nan,0'], dict(label=['a','b']), DataCorruptError, "2 cells of its findings .*'yes' in row 2, column b")])
def test_csv_refused(clinic, rows, kw, error, what):
    with pytest.raises(error, match=what.replace('|', r'\|') if error is DataError else what): csv_index(table(clinic, *rows), **kw)

def test_csv_partial(clinic):
    t = table(clinic, 'path,label', 'scans/0.png,a', 'scans/7.png,a')
    df = get_index(t, partial=True)
    assert len(df)==1 and df.attrs['left_out']=={'not there': {'count': 1, 'first': ['scans/7.png']}}
    with pytest.raises(DataCorruptError, match='1 of them are not there'): get_index(table(clinic, 'path,label', 'scans/7.png,a'), partial=True)

def test_other_files(clinic):
    (clinic/'x.zip').write_bytes(b'')
    with pytest.raises(DataError, match='neither a table'): get_index(clinic/'x.zip')
    with pytest.raises(DataNotFoundError, match='nor a table. Known: mednist.*chexpert.*kvasir.*pathmnist'): get_index(clinic/'no.csv')

# --- MedMNIST

def npz(file, n=dict(train=5, val=2, test=3), labels=lambda k: np.arange(k)[:,None]%2, shape=(28,28), **more):
    rng = np.random.default_rng(0)
    arrays = {f'{p}_images': rng.integers(0, 256, (k,*shape), dtype=np.uint8) for p,k in n.items()} | {f'{p}_labels': labels(k) for p,k in n.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays | more)
    return arrays

@pytest.mark.parametrize('name,shape', [('pneumoniamnist',(28,28)), ('pathmnist_64',(64,64,3)), ('bloodmnist_224',(224,224,3)), ('own',(28,30))])
def test_npz(tmp_path, name, shape):
    arrays = npz(tmp_path/f'{name}.npz', shape=shape)
    df = get_index(tmp_path/f'{name}.npz')
    classes = dict(pneumoniamnist=['normal','pneumonia'], pathmnist_64=['adipose','background'], bloodmnist_224=['basophil','eosinophil'], own=['0','1'])[name]
    for part,own in (('train','train'), ('val','valid'), ('test','test')):
        o = df[df.split==own]
        assert np.array_equal(np.stack([np.asarray(Image.open(p)) for p in o.path]), arrays[f'{part}_images'])
        assert o.label.tolist()==[classes[i] for i in arrays[f'{part}_labels'].ravel()]
    assert set(df.source)=={name} and Path(df.attrs['root']).parent==fastai_folder() and Path(df.attrs['root']).name.startswith(f'{name}-')
    at = os.stat(df.path[0]).st_mtime_ns
    assert get_index(tmp_path/f'{name}.npz').equals(df) and os.stat(df.path[0]).st_mtime_ns==at # written once
    npz(tmp_path/f'{name}.npz', dict(train=2, val=2, test=2), shape=shape)
    assert len(get_index(tmp_path/f'{name}.npz'))==6 # another file by the same name is another folder

def test_npz_several_findings(tmp_path):
    y = lambda k: np.array([[1,0,1], [0,0,0], [0,1,0], [1,1,1], [0,0,1]], dtype=np.uint8)[:k]
    npz(tmp_path/'own.npz', labels=y)
    assert get_index(tmp_path/'own.npz').query('split=="train"').label.tolist()==['0|2','','1','0|1|2','2']
    npz(tmp_path/'chestmnist.npz', labels=lambda k: np.pad(y(k), ((0,0),(0,11))))
    assert get_index(tmp_path/'chestmnist.npz').query('split=="valid"').label.tolist()==['atelectasis|effusion','']

@pytest.mark.parametrize('kw,what', [(dict(shape=(28,28,28)), 'expected uint8'), (dict(train_labels=np.zeros((4,1), int)), '4 labels and images of shape'),
    (dict(train_images=np.zeros((5,28,28))), 'no plain array'), (dict(labels=lambda k: np.full((k,1), 7)), 'do not fit 2 classes'),
    (dict(labels=lambda k: np.full((k,2), 3)), 'do not fit'), (dict(train_labels=np.array([{}]*5)), 'no plain array')])
def test_npz_refused(tmp_path, kw, what):
    npz(tmp_path/'pneumoniamnist.npz', **kw)
    with pytest.raises(DataCorruptError, match=f'pneumoniamnist.npz is refused: .*{what}'): get_index(tmp_path/'pneumoniamnist.npz')
    assert not [o for o in fastai_folder().iterdir() if o.is_dir()] # nothing half-written stays

def test_npz_damaged(tmp_path):
    np.savez(tmp_path/'few.npz', train_images=np.zeros((2,28,28), np.uint8), train_labels=np.zeros((2,1), int))
    with pytest.raises(DataCorruptError, match='no array val_images'): get_index(tmp_path/'few.npz')
    (tmp_path/'text.npz').write_text('x')
    with pytest.raises(DataCorruptError, match='could not be unpacked'): get_index(tmp_path/'text.npz')
    npz(tmp_path/'short.npz')
    with zipfile.ZipFile(tmp_path/'short.npz') as z: members = {o: z.read(o) for o in z.namelist()}
    with zipfile.ZipFile(tmp_path/'cut.npz', 'w') as z:
        for k,v in members.items(): z.writestr(k, v[:-100] if k=='test_images.npy' else v)
    with pytest.raises(DataCorruptError, match='ends too early'): get_index(tmp_path/'cut.npz')

def test_medmnist_by_name(tmp_path, monkeypatch):
    "Found on the shelf, in ~/.medmnist, or asked of Zenodo; only with MedMNIST's own bytes"
    arrays = npz(tmp_path/'shelf'/'pneumoniamnist_64.npz', shape=(64,64))
    with pytest.raises(DataCorruptError, match='md5 is not that of MedMNIST'): get_index('pneumoniamnist_64', tmp_path/'shelf')
    monkeypatch.setitem(sources._medmnist_md5['pneumoniamnist'], '64', data._md5(tmp_path/'shelf'/'pneumoniamnist_64.npz'))
    df = get_index('pneumoniamnist_64', tmp_path/'shelf')
    assert len(df)==10 and set(df.source)=={'pneumoniamnist_64'} and Path(df.attrs['root'])==fastai_folder()/'pneumoniamnist_64'
    assert get_index('pneumoniamnist_64').equals(df) # there by now
    shutil.rmtree(df.attrs['root'])
    shutil.copytree(tmp_path/'shelf', tmp_path/'user'/'.medmnist')
    assert get_index('pneumoniamnist_64').equals(df)
    asked = []
    monkeypatch.setattr(data, 'download', lambda url, dst, md5, progress: asked.append((url, md5)) or npz(dst) and dst)
    with pytest.raises(DataCorruptError): get_index('octmnist')
    assert asked==[('https://zenodo.org/records/10519652/files/octmnist.npz', 'c68d92d5b585d8d81f7112f81e2d0842')]
    for o in ('pathmnist_32', 'nosuchmnist', 'organmnist3d'):
        with pytest.raises(DataNotFoundError, match='nor a known source'): get_index(o)

def test_medmnist_names_and_sums():
    "What is written down here is what the package `medmnist` says, where it is installed"
    info = pytest.importorskip('medmnist.info').INFO
    flat = {k: v for k,v in info.items() if '3d' not in k}
    assert MEDMNIST=={k: list(v['label'].values()) for k,v in flat.items()}
    for k,v in flat.items():
        assert sources._medmnist_md5[k]=={'28': v['MD5'], '64': v['MD5_64'], '128': v['MD5_128'], '224': v['MD5_224']}
        assert (SOURCES[k].mode=='RGB')==(v['n_channels']==3) and SOURCES[k].licence==v['license'] and v['url'].startswith(SOURCES[k].url)
        assert v['url_64'].startswith(find_record(f'{k}_64').url)
