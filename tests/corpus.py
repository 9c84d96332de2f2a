"""A corpus of bad and odd input: `KINDS` is a table of kinds, and for each a maker that fills a folder with it, the status that its files must get, and how many rows they take.

Everything is made here from nothing, but for a DICOM file that comes with pydicom. `make_corpus` writes the whole of it.
"""
import base64, gzip, io, os, pickle, random, socket, stat, struct, sys, tarfile, zipfile, zlib
from pathlib import Path
from typing import Callable, NamedTuple
import numpy as np
from PIL import Image

class Kind(NamedTuple):
    "A kind of input"
    make: Callable # fills the folder that it is given
    status: str # of every row
    rows: int=1 # how many there are

KINDS = {}

def kind(status, rows=1):
    "Registers a maker under its own name"
    def _reg(f):
        KINDS[f.__name__] = Kind(f, status, rows)
        return f
    return _reg

def file(name, status, data, to=None):
    "Registers a kind that is one file; `data` are its bytes, or makes them"
    KINDS[name] = Kind(lambda d: (d/(to or f'{name}.png')).write_bytes(data() if callable(data) else data), status)

H,W = 40,48
_y,_x = np.mgrid[:H,:W]
GREY = np.clip(127 + 60*np.sin(_x/5) + 60*np.cos(_y/7), 0, 255).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY[:,::-1]], -1)
DEEP = (GREY.astype(np.uint16)*13 + _x).astype(np.uint16)
RGBA = np.dstack([RGB, _x.astype(np.uint8)*5])

def encode(a, fmt='PNG', mode=None, **kw):
    "Array `a` as the bytes of a picture"
    im,out = Image.fromarray(a),io.BytesIO()
    if mode: im = im.convert(mode)
    im.save(out, fmt, **kw)
    return out.getvalue()

def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name+data))

def png(w, h, bits=8, colour=0, data=b'', extra=b'', end=True):
    "A PNG whose header may say what is not so"
    head = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, colour, 0, 0, 0))
    return head + extra + (chunk(b'IDAT', data) if data else b'') + (chunk(b'IEND', b'') if end else b'')

def rows(w, h, byte=b'\x80', bits=8): return zlib.compress((b'\0' + byte*(-(-w*bits//8)))*h, 9)

def exif(b): return encode(GREY, 'JPEG', exif=b'Exif\0\0'+b)

# ---- no pictures at all

def _zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z: z.writestr('scan.png', encode(GREY))
    return out.getvalue()

def _tar():
    out,b = io.BytesIO(),encode(GREY)
    with tarfile.open(fileobj=out, mode='w') as t:
        info = tarfile.TarInfo('scan.png')
        info.size = len(b)
        t.addfile(info, io.BytesIO(b))
    return out.getvalue()

NONE = dict(empty=b'', one_byte=b'\xff', zeros=bytes(4096), noise=random.Random(0).randbytes(4096), text=b'Patient moved, see the next series.\n', text_utf16='\ufeffnot a picture'.encode('utf-16'),
    html=b'<!DOCTYPE html><html><body>404 Not Found</body></html>', svg=b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', pdf=b'%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n', zip=_zip, tar=_tar,
    gzip=lambda: gzip.compress(encode(GREY)), json=b'{"path": "scan.png"}', csv=b'path,label\nscan.png,Hand\n', pickle=lambda: pickle.dumps(dict(a=1)), program=b'MZ\x90\0'+bytes(200), elf=b'\x7fELF\x02\x01\x01'+bytes(100),
    wave=b'RIFF\x24\0\0\0WAVEfmt '+bytes(40), film=b'\0\0\0\x18ftypmp42'+bytes(100), heic=b'\0\0\0\x18ftypheic'+bytes(100), postscript=b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', ole=b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1'+bytes(600),
    netpbm=b'P5 4 4 255\n'+bytes(16), base64=lambda: base64.b64encode(encode(GREY)), lfs_pointer=b'version https://git-lfs.github.com/spec/v1\noid sha256:'+b'0'*64+b'\nsize 4321\n',
    png_by_ftp_in_text_mode=lambda: encode(GREY).replace(b'\r\n', b'\n'), bom_before_png=lambda: b'\xef\xbb\xbf'+encode(GREY))
for k,v in NONE.items(): file(k, 'unreadable', v, f'{k}.jpg')
file('ds_store', 'unreadable', b'\0\0\0\1Bud1'+bytes(100), '.DS_Store')

# ---- cut short

PLACES = 20

def dicom(**kw):
    "pydicom's small CT as bytes, with other values for some elements (None: without)"
    import pydicom
    ds = pydicom.dcmread(Path(pydicom.__file__).parent/'data/test_files/CT_small.dcm')
    for k,v in kw.items():
        if v is None: delattr(ds, k)
        else: setattr(ds.file_meta if k=='TransferSyntaxUID' else ds, k, v)
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds)
    return out.getvalue()

def cuts(make, name):
    def _make(d):
        b = make()
        for i in range(1, PLACES+1): (d/f'{i:02}-{name}').write_bytes(b[:len(b)*i//(PLACES+1)])
    return _make

for k,f,n in [('png',lambda: encode(GREY),'cut.png'), ('jpeg',lambda: encode(RGB, 'JPEG'),'cut.jpg'), ('progressive',lambda: encode(RGB, 'JPEG', progressive=True),'cut.jpg'), ('dicom',dicom,'cut.dcm')]:
    KINDS[f'cut_{k}'] = Kind(cuts(f, n), 'unreadable', PLACES)

def half(b): return b[:len(b)//2]
for k,kw in dict(gif=dict(fmt='GIF'), webp=dict(fmt='WEBP'), bmp=dict(fmt='BMP'), tiff=dict(fmt='TIFF'), tiff_lzw=dict(fmt='TIFF', compression='tiff_lzw'), bigtiff=dict(fmt='TIFF', big_tiff=True)).items():
    file(f'cut_{k}', 'unreadable', lambda kw=kw: half(encode(RGB, **kw)))
file('cut_animation', 'unreadable', lambda: half(half(animation('GIF'))))

# ---- damaged

def flip(b, at): return b[:at] + bytes([b[at]^0xff]) + b[at+1:]

def _gif_bad_lzw():
    b = encode(RGB, 'GIF')
    return b[:len(b)//2] + b'\xff'*(len(b)-len(b)//2)

def tiff(w=W, h=H, data=None, **tags):
    "A grey TIFF of one strip, its tags (by number, t259=...) other than they should be, left out where None"
    data = GREY.tobytes() if data is None else data
    t = {256:w, 257:h, 258:8, 259:1, 262:1, 273:8, 277:1, 278:h, 279:len(data)} | {int(k[1:]):v for k,v in tags.items()}
    t = [struct.pack('<HHII', k, 4, 1, v) for k,v in sorted(t.items()) if v is not None]
    return b'II*\0' + struct.pack('<I', 8+len(data)) + data + struct.pack('<H', len(t)) + b''.join(t) + bytes(4)

file('png_wrong_checksum', 'unreadable', lambda: flip(encode(GREY), len(encode(GREY))//2))
file('png_without_pixels', 'unreadable', lambda: png(W, H))
file('png_without_header', 'unreadable', lambda: encode(GREY)[:8]+encode(GREY)[33:])
file('png_of_no_size', 'unreadable', lambda: png(0, 0, data=rows(1, 1)))
file('png_too_few_rows', 'unreadable', lambda: png(W, H, data=rows(W, H//2)))
file('png_odd_depth', 'unreadable', lambda: png(W, H, bits=5, data=rows(W, H)))
file('jpeg_signature_only', 'unreadable', b'\xff\xd8\xff\xe0', 'x.jpg')
file('jpeg_without_tables', 'unreadable', lambda: (b := encode(GREY, 'JPEG'))[:2] + b[b.index(b'\xff\xc0'):], 'x.jpg')
file('jpeg_download_filled_with_zeros', 'unreadable', lambda: half(encode(RGB, 'JPEG'))+bytes(4000), 'x.jpg')
file('gif_without_frame', 'unreadable', b'GIF89a\x10\0\x10\0\0\0\0;', 'x.gif')
file('gif_bad_codes', 'unreadable', _gif_bad_lzw, 'x.gif')
file('webp_wrong_length', 'unreadable', lambda: (b := encode(RGB, 'WEBP'))[:4]+struct.pack('<I', 2**31)+b[8:], 'x.webp')
file('bmp_odd_depth', 'unreadable', lambda: (b := encode(RGB, 'BMP'))[:28]+struct.pack('<H', 7)+b[30:], 'x.bmp')
file('tiff_without_tags', 'unreadable', b'II*\0\x08\0\0\0\0\0'+bytes(4), 'x.tif')
file('tiff_without_width', 'unreadable', lambda: tiff(t256=None), 'x.tif')
file('tiff_pixels_beyond_its_end', 'unreadable', lambda: tiff(t273=10**6), 'x.tif')
file('tiff_unknown_compression', 'unreadable', lambda: tiff(t259=4242), 'x.tif')
file('tiff_tags_beyond_its_end', 'unreadable', b'II*\0'+struct.pack('<I', 10**9)+bytes(100), 'x.tif')

# ---- bombs, and sizes that only the header has

BIG = 100_000
file('bomb_png_header', 'unreadable', lambda: png(BIG, BIG, data=rows(W, H)))
file('bomb_png', 'unreadable', lambda: png(20_000, 20_000, bits=1, data=rows(20_000, 20_000, bits=1))) # 50 MB in 50 kB, and eight times that when decoded
file('bomb_png_text', 'unreadable', lambda: png(W, H, data=rows(W, H), extra=chunk(b'zTXt', b'Comment\0\0'+zlib.compress(bytes(50_000_000), 9))))
file('bomb_png_profile', 'unreadable', lambda: png(W, H, data=rows(W, H), extra=chunk(b'iCCP', b'icc\0\0'+zlib.compress(bytes(50_000_000), 9))))
file('bomb_tiff', 'unreadable', lambda: tiff(BIG, BIG), 'x.tif')
file('bomb_tiff_strip', 'unreadable', lambda: tiff(20_000, 20_000, zlib.compress(bytes(20_000*20_000//8), 9), t258=1, t259=8), 'x.tif')
file('bomb_gif', 'unreadable', lambda: (b := encode(RGB, 'GIF'))[:6]+struct.pack('<HH', 65535, 65535)+b[10:], 'x.gif')
file('bomb_bmp', 'unreadable', lambda: (b := encode(RGB, 'BMP'))[:18]+struct.pack('<ii', BIG, BIG)+b[26:], 'x.bmp')
file('bomb_webp', 'unreadable', b'RIFF'+struct.pack('<I', 30)+b'WEBPVP8X'+struct.pack('<I', 10)+bytes(4)+(16383).to_bytes(3,'little')*2, 'x.webp')
file('bomb_jpeg', 'unreadable', lambda: (b := encode(GREY, 'JPEG'))[:(at := b.index(b'\xff\xc0'))+5]+struct.pack('>HH', 60_000, 60_000)+b[at+9:], 'x.jpg')
file('bomb_dicom', 'unreadable', lambda: dicom(Rows=65_535, Columns=65_535), 'x.dcm')
file('bomb_dicom_deflated', 'unreadable', lambda: deflated(600), 'x.dcm')
file('one_row', 'sorted', lambda: encode(np.zeros((1,30_000), np.uint8)))
file('one_column', 'sorted', lambda: encode(np.zeros((30_000,1), np.uint8)))
file('one_pixel', 'sorted', lambda: encode(np.zeros((1,1), np.uint8)))

def deflated(mb):
    "A deflated DICOM that goes on for megabytes behind its pixels"
    b = dicom(TransferSyntaxUID='1.2.840.10008.1.2.1.99')
    head = 132+12+struct.unpack_from('<I', b, 140)[0] # preamble and group 2
    z = zlib.compressobj(1, wbits=-15)
    body = z.compress(zlib.decompress(b[head:], -15) + struct.pack('<HH2sHI', 0xfffc, 0xfffc, b'OB', 0, mb*10**6))
    return b[:head] + body + b''.join(z.compress(bytes(10**6)) for _ in range(mb)) + z.flush()

# ---- pictures of uncommon kinds

def animation(fmt, **kw):
    out,frames = io.BytesIO(),[Image.fromarray(o) for o in (RGB, RGB[::-1].copy(), RGB[:,::-1].copy())]
    frames[0].save(out, fmt, save_all=True, append_images=frames[1:], **kw)
    return out.getvalue()

GOOD = dict(cmyk=lambda: encode(RGB, 'JPEG', 'CMYK'), cmyk_tiff=lambda: encode(RGB, 'TIFF', 'CMYK'), grey_16=lambda: encode(DEEP), tiff_16=lambda: encode(DEEP, 'TIFF'), tiff_float=lambda: encode(GREY.astype(np.float32)/255, 'TIFF'),
    tiff_float_with_holes=lambda: encode(np.where(_x==3, np.nan, GREY).astype(np.float32), 'TIFF'), rgb_16=lambda: png(W, H, 16, 2, rows(W, H, b'\1\2\3\4\5\6')), palette=lambda: encode(RGB, mode='P'),
    palette_transparent=lambda: encode(RGB, mode='P', transparency=0), alpha=lambda: encode(RGBA), grey_alpha=lambda: encode(RGBA, mode='LA'), one_bit=lambda: encode(GREY, mode='1'), progressive=lambda: encode(RGB, 'JPEG', progressive=True),
    animated_gif=lambda: animation('GIF'), animated_webp=lambda: animation('WEBP'), animated_png=lambda: animation('PNG'), multi_page=lambda: animation('TIFF'), tiff_big=lambda: encode(RGB, 'TIFF', big_tiff=True),
    tiff_fax=lambda: encode(GREY, 'TIFF', '1', compression='group4'), bmp=lambda: encode(RGB, 'BMP'), webp_lossless=lambda: encode(RGBA, 'WEBP', lossless=True), trailing_bytes=lambda: encode(GREY)+b'more'*100,
    exif_garbage=lambda: exif(b'garbage'), exif_cut=lambda: exif(b'MM\0*\0\0\0\x08\0\x01\x01\x12'), exif_far_away=lambda: exif(b'II*\0\xff\xff\xff\xff'), exif_unknown_turn=lambda: exif(b'MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0'+bytes(4)),
    exif_full=lambda: exif(b'x'*65_000))
for k,v in GOOD.items(): file(k, 'sorted', v, f'{k}.img')
file('tiff_no_finite_value', 'unreadable', lambda: encode(np.full((4,4), np.nan, np.float32), 'TIFF'), 'x.tif')

# the name says one thing, the bytes another: the bytes count
for k,n,v in [('png_named_jpg','scan.jpg',lambda: encode(GREY)), ('jpeg_named_png','scan.png',lambda: encode(GREY, 'JPEG')), ('dicom_named_jpg','scan.jpg',dicom), ('jpeg_named_dcm','scan.dcm',lambda: encode(GREY, 'JPEG')),
              ('png_named_txt','scan.txt',lambda: encode(GREY)), ('png_without_ending','IM0001',lambda: encode(GREY)), ('gif_named_tif','scan.tif',lambda: encode(GREY, 'GIF'))]: file(k, 'sorted', v, n)

# ---- DICOM

file('dicom_without_pixels', 'unreadable', lambda: dicom(PixelData=None), 'x.dcm')
file('dicom_empty_pixels', 'unreadable', lambda: dicom(PixelData=b''), 'x.dcm')
file('dicom_more_rows_than_pixels', 'unreadable', lambda: dicom(Rows=512), 'x.dcm')
file('dicom_without_rows', 'unreadable', lambda: dicom(Rows=None), 'x.dcm')
file('dicom_no_rows', 'unreadable', lambda: dicom(Rows=0), 'x.dcm')
file('dicom_odd_bits', 'unreadable', lambda: dicom(BitsAllocated=7), 'x.dcm')
file('dicom_unknown_transfer_syntax', 'unreadable', lambda: (b := dicom()).replace(b'1.2.840.10008.1.2.1\0', b'1.2.840.10008.9.9.9\0'), 'x.dcm')
file('dicom_unknown_colours', 'unreadable', lambda: dicom(PhotometricInterpretation='SEPIA'), 'x.dcm')
file('dicom_preamble_only', 'unreadable', bytes(128)+b'DICM', 'x.dcm')
file('dicom_noise_behind_preamble', 'unreadable', lambda: bytes(128)+b'DICM'+random.Random(1).randbytes(5000), 'x.dcm')
file('dicom_text_behind_preamble', 'unreadable', bytes(128)+b'DICM'+b'and then a letter follows. '*50, 'x.dcm')
file('dicom_good', 'sorted', dicom, 'IM2')

# ---- names

NAMES = dict(newline=b'new\nline.png', carriage_return=b'cr\rlf\r\n.png', quotes=b'"quote\'s", comma; semicolon.png', emoji='\U0001f600\U0001fa7b.png'.encode(), bytes_255=b'x'*251+b'.png', bytes_255_wide='é'.encode()*125+b'x.png',
    leading_dash=b'-rf', double_dash=b'--strict.png', formula=b'=HYPERLINK("http:x").png', plus=b'+1.png', at=b'@SUM(1).png', tab=b'\ttab.png', apostrophe=b"'png", not_utf8=b'\xff\xfe.png', latin1='Röntgen.png'.encode('latin-1'), utf8_cut='é'.encode()[:1]+b'.png',
    surrogate=b'\xed\xa0\x80.png', backslash=b'back\\slash.png', percent=b'%41%2f..%00.png', blank=b' .png', trailing_dot=b'dot.', trailing_blank=b'blank ', dots_only=b'...', hidden=b'.hidden.png', device=b'CON.png', right_to_left='\u202egnp.exe'.encode(),
    control=b'\x01\x1b[31m\x7f.png', no_break='a\u00a0b\u2028c.png'.encode(), our_report=b'report.csv', our_journal=b'journal.jsonl', our_folder=b'.mednist-sort', review=b'_review', wildcard=b'*.p?g', comment=b'#x.png', home=b'~.png', null=b'NA', nan=b'nan')
for k,v in NAMES.items():
    # each picture differs from the others, behind its end, so that a mix-up would be seen
    KINDS[f'name_{k}'] = Kind(lambda d, v=v: (Path(os.fsdecode(os.path.join(os.fsencode(d), v))).write_bytes(encode(GREY)+v)), 'sorted')

# ---- what is no regular file

@kind('sorted')
def folder_called_jpg(d):
    (d/'x.jpg').mkdir()
    (d/'x.jpg/in.png').write_bytes(encode(GREY))
@kind('sorted', 0)
def empty_folder_called_jpg(d): (d/'x.jpg').mkdir()
@kind('skipped')
def fifo(d): os.mkfifo(d/'x.png')
@kind('skipped')
def unix_socket(d):
    at = os.open('.', os.O_RDONLY)
    os.chdir(d) # the path of a socket may have 100 characters only
    try:
        with socket.socket(socket.AF_UNIX) as s: s.bind('x.png')
    finally:
        os.fchdir(at)
        os.close(at)
@kind('skipped')
def link_to_nowhere(d): (d/'x.png').symlink_to('nowhere')
@kind('skipped')
def link_to_itself(d): (d/'x.png').symlink_to('x.png')
@kind('skipped', 2)
def links_to_each_other(d):
    (d/'a.png').symlink_to('b.png')
    (d/'b.png').symlink_to('a.png')
@kind('skipped')
def link_to_its_folder(d): (d/'loop').symlink_to('.')
@kind('skipped')
def link_to_the_root(d): (d/'root').symlink_to('/')
@kind('skipped')
def link_to_endless_noughts(d): (d/'x.png').symlink_to('/dev/zero')
@kind('sorted', 2)
def hard_links(d):
    (d/'a.png').write_bytes(encode(GREY)+b'two names')
    os.link(d/'a.png', d/'b.png')
@kind('unreadable')
def sparse(d):
    with open(d/'x.png', 'wb') as f: f.truncate(1<<33) # 8 GiB, and none of it on the disk

def devices_allowed(folder):
    "May device files be made and opened here?"
    p = Path(folder)/'probe'
    try: os.mknod(p, stat.S_IFCHR|0o600, os.makedev(1, 3))
    except OSError: return False
    p.unlink()
    return True

def character_device(d): os.mknod(d/'x.png', stat.S_IFCHR|0o666, os.makedev(1, 5)) # /dev/zero: reading it would never end
def block_device(d): os.mknod(d/'x.png', stat.S_IFBLK|0o666, os.makedev(7, 0))
DEVICES = dict(character_device=Kind(character_device, 'skipped'), block_device=Kind(block_device, 'skipped'))

def make_corpus(top):
    "Fill the folder `top` with a folder for each kind; returns them (name -> Kind), less those that this system doesn't allow"
    top.mkdir(parents=True)
    kinds = KINDS | (DEVICES if devices_allowed(top) else {})
    for name,k in list(kinds.items()):
        d = top/name
        d.mkdir()
        try: k.make(d)
        except OSError:
            if sys.platform=='linux' or not name.startswith('name_'): raise
            del kinds[name] # not every disk takes every name
        for i,p in enumerate(sorted(d.rglob('*'))):
            if p.is_file() and not p.is_symlink(): os.utime(p, ns=(10**18, 10**18+i*1001))
    return kinds
