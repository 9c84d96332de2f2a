"The mechanism of `images`: every format, mode, orientation and depth, and every way a file can be bad"
import io, os, pickle, random, struct, subprocess, sys, warnings, zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs, numpy as np, pytest
from PIL import Image

from mednist_fastai import images
from mednist_fastai.images import (EmptyFileError, ImageError, ImageNotFoundError, ImagePermissionError, ImageTooLargeError, NotAFileError,
    NotAnImageError, TruncatedImageError, UnsupportedImageError, load_image, open_image, resize_image)

H,W = 40,48
_y,_x = np.mgrid[:H,:W]
GREY = np.clip(127 + 60*np.sin(_x/5) + 60*np.cos(_y/7), 0, 255).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY[:,::-1]], -1)
DEEP = (GREY.astype(np.uint16)*13 + _x).astype(np.uint16) # 12 bits in 16

def encode(a, fmt, mode=None, **kw):
    "Array `a` as the bytes of a file"
    im = Image.fromarray(a)
    if mode: im = im.convert(mode)
    out = io.BytesIO()
    im.save(out, fmt, **kw)
    return out.getvalue()

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))

def png(a, colour, bits=16, extra=b'', size=None):
    "Samples `a`, (H,W,channels), as an uncommon PNG; `size` lies about width and height"
    w,h = size or (a.shape[1], a.shape[0])
    rows = b''.join(b'\0' + o.tobytes() for o in np.ascontiguousarray(a.astype('>u2' if bits==16 else 'u1')))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, colour, 0, 0, 0)) + extra
        + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))

def tiff(a, photometric=1, sample_format=1, order='<', extra=(), size=None, compression=1, planar=1):
    "Array `a` as an uncompressed TIFF of one strip, with the tags that Pillow never writes"
    n = a.shape[2] if a.ndim==3 else 1
    w,h = size or (a.shape[1], a.shape[0])
    data = np.ascontiguousarray(a.transpose(2, 0, 1) if planar==2 else a).astype(a.dtype.newbyteorder(order)).tobytes()
    plane = len(data)//n
    offsets = [0] if planar==1 else [plane*i for i in range(n)]
    tags = [(256,4,[w]), (257,4,[h]), (258,3,[a.dtype.itemsize*8]*n), (259,3,[compression]), (262,3,[photometric]), (273,4,offsets), (277,3,[n]),
        (278,4,[h]), (279,4,[len(data)//len(offsets)]*len(offsets)), (284,3,[planar]), (339,3,[sample_format]*n), *extra]
    tags.sort()
    pos,blob,entries = 8+2+12*len(tags)+4,b'',[]
    total = pos + sum(l for _,k,v in tags if (l := len(v)*(2 if k==3 else 4))>4)
    for tag,kind,v in tags:
        if tag==273: v = [o+total for o in v]
        b = struct.pack(f"{order}{len(v)}{'H' if kind==3 else 'I'}", *v)
        if len(b)>4: b,blob = struct.pack(order+'I', pos+len(blob)),blob+b
        entries.append(struct.pack(order+'HHI', tag, kind, len(v)) + b.ljust(4, b'\0'))
    head = (b'II*\0' if order=='<' else b'MM\0*') + struct.pack(order+'I', 8)
    return head + struct.pack(order+'H', len(tags)) + b''.join(entries) + bytes(4) + blob + data

def rule(a, ok=None):
    "The documented rule for deep pictures, in its plainest form"
    a = a.astype(np.float64)
    ok = np.isfinite(a) if ok is None else ok
    lo,hi = a[ok].min(),a[ok].max()
    return np.where(ok, np.rint((a-lo)*255/(hi-lo)), 0).astype(np.uint8)

@pytest.fixture
def put(tmp_path):
    "Writes bytes to a file whose name says nothing"
    def _put(data, name='scan.jpg'):
        (tmp_path/name).write_bytes(data)
        return tmp_path/name
    return _put

@pytest.fixture(autouse=True)
def quiet():
    "No test here may see a warning, an unclosed file included"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield

def px(path, mode='L', **kw): return np.asarray(open_image(path, mode, **kw))

# ---------------------------------------------------------------- what can be read

FILES = dict(jpeg=encode(GREY, 'JPEG'), jpeg_rgb=encode(RGB, 'JPEG'), jpeg_progressive=encode(RGB, 'JPEG', progressive=True),
    jpeg_cmyk=encode(RGB, 'JPEG', 'CMYK'), png=encode(GREY, 'PNG'), png_rgb=encode(RGB, 'PNG'), png_palette=encode(RGB, 'PNG', 'P'),
    png_1bit=encode(GREY, 'PNG', '1'), png_16=encode(DEEP, 'PNG'), png_rgb16=png(np.dstack([DEEP]*3), 2), bmp=encode(GREY, 'BMP'),
    bmp_rgb=encode(RGB, 'BMP'), gif=encode(RGB, 'GIF'), webp=encode(RGB, 'WEBP'), webp_lossless=encode(RGB, 'WEBP', lossless=True),
    tiff=encode(RGB, 'TIFF'), tiff_16=encode(DEEP, 'TIFF'), tiff_float=encode(GREY.astype(np.float32), 'TIFF'), tiff_big=encode(GREY, 'TIFF', big_tiff=True),
    tiff_lzw=encode(RGB, 'TIFF', compression='tiff_lzw'), tiff_deflate=encode(DEEP, 'TIFF', compression='tiff_adobe_deflate'),
    tiff_packbits=encode(RGB, 'TIFF', compression='packbits'), tiff_jpeg=encode(RGB, 'TIFF', compression='jpeg'),
    tiff_g4=encode(GREY, 'TIFF', '1', compression='group4'))

@pytest.mark.parametrize('mode', ['L','RGB'])
@pytest.mark.parametrize('name', FILES)
def test_formats(put, name, mode):
    im = open_image(put(FILES[name]), mode)
    assert (im.mode, im.size, im.info, type(im)) == (mode, (W,H), {}, Image.Image)
    if not name.endswith(('1bit','g4','tiff_16','tiff_deflate','png_16','rgb16','float')): # lossy or exact, but the same picture
        ref = Image.fromarray(GREY if name in ('jpeg','png','bmp','tiff_big') else RGB).convert(mode)
        assert abs(np.asarray(im).astype(int) - np.asarray(ref)).mean() < 20
    for kind in ('str', 'bytes'): assert np.array_equal(px((os.fspath if kind=='str' else os.fsencode)(put(FILES[name])), mode), np.asarray(im))

@pytest.mark.parametrize('name', ['png','bmp','tiff_big'])
def test_8bit_grey_is_exact(put, name): assert np.array_equal(px(put(FILES[name])), GREY)

@pytest.mark.parametrize('name', ['png_rgb','bmp_rgb','webp_lossless','tiff','tiff_lzw','tiff_packbits'])
def test_8bit_colour_is_exact(put, name): assert np.array_equal(px(put(FILES[name]), 'RGB'), RGB)

def test_one_bit(put): assert set(np.unique(px(put(FILES['png_1bit'])))) == {0,255}

@pytest.mark.parametrize('fmt', ['GIF','WEBP','TIFF','PNG'])
def test_first_frame(put, fmt):
    frames = [Image.fromarray(a).convert('P' if fmt=='GIF' else 'RGB') for a in (GREY, 255-GREY)]
    out = io.BytesIO()
    frames[0].save(out, fmt, save_all=True, append_images=frames[1:], **(dict(lossless=True) if fmt=='WEBP' else {}))
    assert np.array_equal(px(put(out.getvalue())), GREY)

def test_jpeg_grey_is_its_luma(put):
    b = encode(RGB, 'JPEG', quality=95)
    ref = Image.open(io.BytesIO(b))
    ref.draft('L', None)
    assert np.array_equal(px(put(b)), np.asarray(ref))
    assert abs(px(put(b)).astype(int) - np.asarray(Image.open(io.BytesIO(b)).convert('L'))).max() <= 2

def test_cmyk_jpeg_is_not_inverted(put):
    a = np.full((16,16,3), (200,100,50), np.uint8)
    assert abs(px(put(encode(a, 'JPEG', 'CMYK', quality=95)), 'RGB').astype(int) - a).max() <= 3

@pytest.mark.parametrize('mode', ['LAB','YCbCr','CMYK','PA'])
def test_other_colour_spaces(put, mode):
    out = io.BytesIO()
    Image.new(mode, (4,4)).save(out, 'TIFF')
    assert px(put(out.getvalue())).shape == (4,4)

# ---------------------------------------------------------------- transparency

ALPHA = np.where(_x<20, 0, np.where(_x<30, 128, 255)).astype(np.uint8)

@pytest.mark.parametrize('fmt', ['PNG','TIFF','WEBP'])
def test_alpha_on_black(put, fmt):
    a = px(put(encode(np.dstack([RGB, ALPHA]), fmt, **(dict(lossless=True) if fmt=='WEBP' else {}))), 'RGB')
    assert abs(a - RGB*(ALPHA/255.)[...,None]).max() <= 1

def test_grey_alpha(put): assert abs(px(put(encode(np.dstack([GREY, ALPHA]), 'PNG'))) - GREY*(ALPHA/255.)).max() <= 1

def test_transparent_palette_entry_and_level(put):
    pal = Image.fromarray(GREY).convert('P')
    for kw in (dict(transparency=int(GREY[5,5])), dict(transparency=bytes([255]*int(GREY[5,5])+[0]))):
        for im,fmt in ((pal,'PNG'), (pal,'GIF'), (Image.fromarray(GREY),'PNG')):
            if isinstance(kw['transparency'], bytes) and (fmt=='GIF' or im.mode=='L'): continue
            out = io.BytesIO()
            im.save(out, fmt, **kw)
            assert np.array_equal(px(put(out.getvalue())), np.where(GREY==GREY[5,5], 0, GREY))

# ---------------------------------------------------------------- more than 8 bits

@pytest.mark.parametrize('a', [DEEP, DEEP+60000, (DEEP*20).astype(np.uint16)], ids=['12 bits','high','16 bits'])
@pytest.mark.parametrize('fmt', ['PNG','TIFF'])
def test_16bit_grey(put, fmt, a): assert np.array_equal(px(put(encode(a.astype(np.uint16), fmt))), rule(a))

@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('dtype', ['u2','i2','u4','i4','f4'])
def test_deep_tiff(put, dtype, order):
    a = DEEP.astype(dtype)*16 if dtype!='i2' else DEEP.astype('i2')-2000
    if dtype=='u4': a = a*70000 # beyond what a signed value holds
    path = put(tiff(a, sample_format={'u':1, 'i':2, 'f':3}[dtype[0]], order=order))
    if (dtype, order)==('u4', '>'):
        with pytest.raises(UnsupportedImageError): open_image(path)
    else: assert np.array_equal(px(path), rule(a))

@pytest.mark.parametrize('dtype', ['u2','f4'])
def test_white_is_zero(put, dtype):
    a = DEEP.astype(dtype)
    assert np.array_equal(px(put(tiff(a, photometric=0, sample_format=3 if dtype=='f4' else 1))), rule(-a.astype(float)))

def test_float_with_holes(put):
    a = DEEP.astype(np.float32)/4096
    a[0,:3] = np.nan, np.inf, -np.inf
    got = px(put(encode(a, 'TIFF')))
    assert tuple(got[0,:3]) == (0, 255, 0)
    assert np.array_equal(got[1:], rule(a)[1:])

def test_extreme_floats(put):
    a = np.array([[-3e38, 0, 3e38]], np.float32)
    assert px(put(encode(a, 'TIFF'))).tolist() == [[0, 128, 255]]

@pytest.mark.parametrize('a', [np.full((4,4), 3000, np.uint16), np.full((4,4), .5, np.float32), np.full((4,4), -7, np.int32)])
def test_constant_is_black(put, a): assert not px(put(encode(a, 'TIFF'))).any()

def test_no_finite_value(put):
    with pytest.raises(UnsupportedImageError, match='no finite value'): open_image(put(encode(np.full((4,4), np.nan, np.float32), 'TIFF')))

COLOUR16 = np.dstack([DEEP, DEEP[::-1]//2, DEEP[:,::-1]+300])

def test_16bit_colour_png(put): assert np.array_equal(px(put(png(COLOUR16, 2)), 'RGB'), rule(COLOUR16))

@pytest.mark.parametrize('order', '<>')
def test_16bit_colour_tiff(put, order): assert np.array_equal(px(put(tiff(COLOUR16, photometric=2, order=order)), 'RGB'), rule(COLOUR16))

@pytest.mark.parametrize('planar', [1,2])
@pytest.mark.parametrize('order', '<>')
def test_16bit_colour_tiff_planes(put, order, planar):
    path = put(tiff(COLOUR16, photometric=2, order=order, planar=planar))
    if planar==1: assert np.array_equal(px(path, 'RGB'), rule(COLOUR16))
    else: # Pillow would take these for 8 bits and show nonsense
        with pytest.raises(UnsupportedImageError): open_image(path)

def test_16bit_colour_with_alpha(put):
    alpha = (ALPHA.astype(np.uint16)*257)
    ok = np.repeat((alpha>0)[...,None], 3, 2)
    want = np.rint(rule(COLOUR16, ok)*(alpha/65535)[...,None])
    assert np.array_equal(px(put(png(np.dstack([COLOUR16, alpha]), 6)), 'RGB'), want)

def test_16bit_grey_alpha(put):
    alpha = (ALPHA.astype(np.uint16)*257)
    want = np.rint(rule(DEEP, alpha>0)*(alpha/65535))
    assert np.array_equal(px(put(png(np.dstack([DEEP, alpha]), 4))), want)

def test_16bit_transparent_level(put):
    lv = int(DEEP[0,0])
    assert np.array_equal(px(put(png(DEEP, 0, extra=chunk(b'tRNS', struct.pack('>H', lv))))), rule(DEEP, lv!=DEEP))
    level = COLOUR16[0,0]
    hidden = np.repeat((COLOUR16==level).all(-1, keepdims=True), 3, 2)
    assert np.array_equal(px(put(png(COLOUR16, 2, extra=chunk(b'tRNS', struct.pack('>3H', *level)))), 'RGB'), rule(COLOUR16, ~hidden))

# ---------------------------------------------------------------- orientation

# where each EXIF orientation puts the stored rows and columns, written with numpy only
UPRIGHT = {1: lambda a: a, 2: lambda a: a[:,::-1], 3: lambda a: a[::-1,::-1], 4: lambda a: a[::-1], 5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1,::-1].T, 8: np.rot90}

@pytest.mark.parametrize('fmt', ['PNG','JPEG','WEBP','TIFF'])
@pytest.mark.parametrize('k', UPRIGHT)
def test_orientation(put, fmt, k):
    exif = Image.Exif()
    exif[274] = k
    got = open_image(put(encode(GREY, fmt, exif=exif, **(dict(lossless=True) if fmt=='WEBP' else {}))))
    want = UPRIGHT[k](GREY)
    assert abs(np.asarray(got).astype(int) - want).mean() < (4 if fmt=='JPEG' else 1e-9)
    assert 274 not in got.getexif() # nobody turns it a second time

def test_orientation_of_deep_pictures(put):
    exif = Image.Exif()
    exif[274] = 6
    assert np.array_equal(px(put(encode(DEEP, 'PNG', exif=exif))), np.rot90(rule(DEEP), -1))
    assert np.array_equal(px(put(tiff(COLOUR16, photometric=2, extra=[(274,3,[6])])), 'RGB'), np.rot90(rule(COLOUR16), -1))

@pytest.mark.parametrize('exif', [b'Exif\0\0', b'Exif\0\0garbage', b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12'])
def test_damaged_exif_counts_as_none(put, exif):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert px(put(encode(GREY, 'JPEG', exif=exif))).shape == (H,W)

# ---------------------------------------------------------------- bad files

def cuts(b): return sorted({*range(1, min(len(b), 260), 11), *range(260, len(b), max(1, len(b)//25)), *range(max(1, len(b)-24), len(b), 3)})

@pytest.mark.parametrize('name', FILES)
def test_truncated(put, name):
    "Cut anywhere, a file is an error or gives all its pixels; past its signature, the error is the right one"
    b = FILES[name]
    whole = px(put(b), 'RGB')
    signature = dict(jpeg=3, png=8, bmp=18, gif=6, webp=12, tiff=4)[name.split('_')[0]]
    refused = 0
    for n in cuts(b):
        try: assert np.array_equal(px(put(b[:n]), 'RGB'), whole), f'other pixels after a cut at {n} of {len(b)}'
        except ImageError as e:
            refused += 1
            assert type(e) is (TruncatedImageError if n>=signature else NotAnImageError), (n, e)
            assert e.path.endswith('scan.jpg') and e.reason
    assert refused >= len(cuts(b))-12 # only a missing trailer, behind the pixels, is let pass

@pytest.mark.parametrize('name', ['jpeg','jpeg_rgb','jpeg_progressive','png','gif'])
def test_filled_with_zeros(put, name):
    b = FILES[name]
    with pytest.raises(TruncatedImageError): open_image(put(b[:len(b)//2] + bytes(len(b)-len(b)//2)))

def compressed(*rows): return chunk(b'IDAT', zlib.compress(b''.join(rows)))

def scan(w, h, bits=8, colour=0, interlaced=0, idat=b'', extra=b''):
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, colour, 0, 0, interlaced)) + extra + idat + chunk(b'IEND', b'')

@pytest.mark.parametrize('interlaced', [0,1])
@pytest.mark.parametrize('bits,colour', [(1,0),(2,0),(4,0),(8,0),(16,0),(8,2),(16,2),(1,3),(4,3),(8,3),(8,4),(16,4),(8,6),(16,6)])
def test_png_rows_are_counted(put, bits, colour, interlaced):
    "All black and whole, or a byte short of it, or without its last half"
    extra = chunk(b'PLTE', bytes([255,255,255,0,0,0])) if colour==3 else b''
    for w,h in (1,1),(1,9),(3,2),(9,1),(5,5),(13,10),(64,64):
        n = images._png_bytes(w, h, bits, colour, interlaced)
        for k in (n,n+5)[:0 if (bits,colour) in ((16,4),(16,6)) else 2]: assert open_image(put(scan(w, h, bits, colour, interlaced, compressed(bytes(k)), extra))).size==(w,h)
        for k in n-1,n//2:
            with pytest.raises(ImageError): open_image(put(scan(w, h, bits, colour, interlaced, compressed(bytes(k)), extra)))

@pytest.mark.parametrize('interlaced', [0,1])
@pytest.mark.parametrize('colour', [4,6])
def test_png_rows_of_deep_pictures_with_alpha(put, colour, interlaced):
    "A wholly transparent one is no picture, so one of the pixels is opaque"
    n = images._png_bytes(9, 9, 16, colour, interlaced)
    assert open_image(put(scan(9, 9, 16, colour, interlaced, compressed(b'\0'+b'\xff'*8, bytes(n-9))))).size==(9,9)
    with pytest.raises(TruncatedImageError): open_image(put(scan(9, 9, 16, colour, interlaced, compressed(b'\0'+b'\xff'*8, bytes(n-10)))))

def test_png_bytes():
    assert images._png_bytes(48, 40, 8, 2, 0)==40*(1+48*3) and images._png_bytes(9, 3, 1, 0, 0)==3*3
    assert images._png_bytes(8, 8, 8, 0, 1)==64+15 # 1+1+1+2+2+4+4 rows

def test_png_rows_in_many_parts(put):
    "Black at its end, cut into parts of a few bytes with an empty one between, and other parts before and behind"
    a = GREY.copy()
    a[-9:] = 0
    z = zlib.compress(b''.join(b'\0'+o.tobytes() for o in a))
    idat = b''.join(chunk(b'IDAT', z[i:i+7])+chunk(b'IDAT', b'') for i in range(0, len(z), 7))
    text = chunk(b'tEXt', b'Comment\0'+b'x'*3000)
    assert np.array_equal(px(put(scan(W, H, idat=text+idat+text))), a)
    with pytest.raises(TruncatedImageError, match='rows are missing'): open_image(put(scan(W, H, idat=compressed(*[b'\0'+o.tobytes() for o in GREY[:20]]))))
    big = compressed(bytes(8001*8000)) # 62 kB that become 64 MB
    assert open_image(put(scan(8000, 8000, idat=big))).size==(8000,8000)

def test_png_rows_are_counted_only_where_they_end_black(put, monkeypatch):
    monkeypatch.setattr(images, '_png_parts', lambda f: pytest.fail('inflated twice'))
    for k in 'png','png_rgb','png_16','png_rgb16': open_image(put(FILES[k]))

# a gigabyte, most of it zeros that take no room on the disk
CT = Path(__import__('pydicom').__file__).parent/'data/test_files/CT_small.dcm'
def _ct(behind=b''): return (b := CT.read_bytes())[:144+struct.unpack_from('<I', b, 140)[0]]+behind
SPARSE = dict(jpeg=FILES['jpeg'][:400], jpeg_whole=FILES['jpeg'], png_text=FILES['png'][:33]+struct.pack('>I', 2**30-999)+b'tEXt', png_text_behind=FILES['png'][:-12]+struct.pack('>I', 2**30-999)+b'tEXt',
    png_rows=FILES['png'][:33]+struct.pack('>I', 2**30-999)+b'IDAT', gif=FILES['gif'][:13], gif_half=FILES['gif'][:1500], webp=b'RIFF'+struct.pack('<I', 2**30-8)+FILES['webp'][8:], bigtiff=b'II+\0\x08\0\0\0'+struct.pack('<QQ', 16, 2**60),
    tiff_tags=b'II*\0\x08\0\0\0\xff\xff', dicom=bytes(128)+b'DICM', dicom_meta=_ct(), dicom_item=_ct(struct.pack('<HH2sHIHHI', 8, 0x1111, b'SQ', 0, 2**32-1, 0xfffe, 0xe000, 2**32-1)),
    dicom_bytes=_ct(struct.pack('<HH2sHI', 8, 0x1111, b'OB', 0, 2**32-1)))

# of this process alone: ru_maxrss of Linux also counts what the process that started it had
OPEN_ALL = """import resource, sys, time
from mednist_fastai.images import ImageError, open_image
def peak():
    if sys.platform!='linux': return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//2**20
    with open('/proc/self/status') as f: return int(next(o for o in f if o.startswith('VmHWM')).split()[1])//2**10
open_image(sys.argv[1])
for o in sys.argv[2:]:
    t = time.process_time()
    try: kind = str(open_image(o).size)
    except ImageError as e: kind = type(e).__name__
    print(kind, time.process_time()-t, peak())"""

@pytest.mark.skipif(os.name=='nt', reason='files with holes, and the memory that a process has had')
def test_sparse(tmp_path):
    "Refused, in little memory and not much time; a process of its own measures both"
    for k,v in SPARSE.items():
        (tmp_path/k).write_bytes(v)
        os.truncate(tmp_path/k, 2**30)
    p = subprocess.run([sys.executable, '-c', OPEN_ALL, CT, *(tmp_path/k for k in SPARSE)], capture_output=True, text=True, check=True)
    got = {k:o.split() for k,o in zip(SPARSE, p.stdout.splitlines(), strict=True)}
    for k,(kind,t,mb) in got.items(): assert kind in ('TruncatedImageError','ImageTooLargeError') and float(t)<15 and int(mb)<600, (k, got)

def test_webp_without_what_follows(put):
    path = put(FILES['webp_lossless'])
    os.truncate(path, 2**27)
    assert np.array_equal(px(path, 'RGB'), RGB)

def test_large_files_of_large_pictures_are_read(put):
    "What may be read grows with the picture"
    a = np.random.default_rng(0).integers(0, 2**16, (1500,1500,3), dtype=np.uint16)
    assert np.array_equal(px(put(png(a, 2)), 'RGB'), rule(a)) and np.array_equal(px(put(tiff(a, photometric=2)), 'RGB'), rule(a))
    big = np.random.default_rng(0).integers(0, 256, (5000,5000,3), dtype=np.uint8) # 75 MB
    assert np.array_equal(px(put(encode(big, 'BMP')), 'RGB'), big)

def test_zeros_after_the_end_do_no_harm(put): assert np.array_equal(px(put(FILES['jpeg']+bytes(500))), px(put(FILES['jpeg'])))

@pytest.mark.parametrize('name', FILES)
def test_nothing_else_leaks(put, name):
    "Random damage gives a picture or an ImageError, and no other exception"
    rnd = random.Random(name)
    for _ in range(25):
        b = bytearray(FILES[name])
        for _ in range(rnd.choice([1, 3, 20])): b[rnd.randrange(len(b) if rnd.random()<.5 else 150)] = rnd.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore') # Pillow warns of broken TIFF tags
            try: assert open_image(put(bytes(b)), 'RGB').mode == 'RGB'
            except ImageError: pass

@pytest.mark.parametrize('data,kind', [(b'Jane Doe, born 1950, this is text', 'text'), (b'<!DOCTYPE html><html></html>', 'a web page'), (b'%PDF-1.7\n%....', 'a PDF'),
    (b'PK\x03\x04'+bytes(60), 'a ZIP'), (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'text'), (b'BM is how this text begins, and goes on', 'text'),
    (b'\0'*200, 'unknown'), (b'x', 'text'), (b'RIFF\x24\0\0\0WAVEfmt '+bytes(40), 'unknown'), (b'P5 4 4 255\n'+bytes(16), 'unknown')])
def test_not_an_image(put, data, kind):
    "It is named by its kind, and nothing of it is quoted"
    with pytest.raises(NotAnImageError, match='scan.jpg: not one of JPEG') as e: open_image(put(data))
    assert kind in e.value.reason and 'Jane' not in e.value.reason

def test_empty(put):
    with pytest.raises(EmptyFileError, match='0 bytes'): open_image(put(b''))

def test_missing(tmp_path):
    for path in (tmp_path/'none.png', tmp_path/'a'/'b'/'none.png'):
        with pytest.raises(ImageNotFoundError, match='no such file'): open_image(path)
    (tmp_path/'file').write_bytes(b'x')
    with pytest.raises(ImageError): open_image(tmp_path/'file'/'below.png')

def test_odd_paths(tmp_path):
    for path in ('a\0b.png', str(tmp_path/('n'*300))):
        with pytest.raises(ImageError): open_image(path)

def test_folder(tmp_path):
    with pytest.raises(NotAFileError, match='folder'): open_image(tmp_path)

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no named pipes on this system')
def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path/'pipe.png')
    with ThreadPoolExecutor(1) as ex, pytest.raises(NotAFileError): ex.submit(open_image, tmp_path/'pipe.png').result(timeout=5)

@pytest.mark.skipif(not os.path.exists('/dev/null'), reason='no device files on this system')
def test_device():
    with pytest.raises(NotAFileError): open_image('/dev/null')

@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='permissions work otherwise on this system')
def test_permission(put, tmp_path):
    path = put(FILES['png'])
    root = os.geteuid()==0
    path.chmod(0)
    if root: os.seteuid(65534) # root may read all, so be nobody for a moment
    try:
        with pytest.raises(ImagePermissionError, match='no permission'): open_image(path)
    finally:
        if root: os.seteuid(0)
        path.chmod(0o600)

def test_unsupported_kinds(put):
    for b in (tiff(DEEP.astype('f8'), sample_format=3), tiff(DEEP, compression=33003), tiff(DEEP, photometric=0, order='>')):
        with pytest.raises(UnsupportedImageError): open_image(put(b))

def test_system_errors_are_not_called_damage(put, monkeypatch):
    class Failing(io.BytesIO):
        def read(self, *args): raise OSError(5, 'Input/output error')
    path = put(FILES['png'])
    monkeypatch.setattr(images, '_open_file', lambda p, read: Failing())
    with pytest.raises(ImageError, match='Input/output error') as e: open_image(path)
    assert type(e.value) is ImageError

# ---------------------------------------------------------------- too large

BIG = 100_000 # pixels a side, in the header only
BOMBS = dict(png=png(GREY, 0, 8, size=(BIG,BIG)), tiff=tiff(GREY, size=(BIG,BIG)), bmp=FILES['bmp'][:18]+struct.pack('<ii', BIG, BIG)+FILES['bmp'][26:],
    gif=FILES['gif'][:6]+struct.pack('<HH', 65535, 65535)+FILES['gif'][10:],
    webp=b'RIFF'+struct.pack('<I', 30)+b'WEBPVP8X'+struct.pack('<I', 10)+bytes(4)+(16383).to_bytes(3,'little')*2)

def _jpeg_bomb():
    b = FILES['jpeg']
    at = b.index(b'\xff\xc0')
    return b[:at+5] + struct.pack('>HH', 60000, 60000) + b[at+9:]
BOMBS['jpeg'] = _jpeg_bomb()

@pytest.mark.parametrize('name', BOMBS)
def test_bombs(put, name):
    with pytest.raises(ImageTooLargeError): open_image(put(BOMBS[name]))

def test_limit_is_exact(put, monkeypatch):
    monkeypatch.setattr(images, 'MAX_PIXELS', H*W)
    assert px(put(FILES['png'])).shape == (H,W)
    monkeypatch.setattr(images, 'MAX_PIXELS', H*W-1)
    with pytest.raises(ImageTooLargeError, match='48 x 40 pixels'): open_image(put(FILES['png']))

def test_pillow_is_left_alone(put):
    "No global of Pillow changes, and its own guard neither warns nor gets in the way below it"
    from PIL import ImageFile
    before = Image.MAX_IMAGE_PIXELS,ImageFile.LOAD_TRUNCATED_IMAGES
    for b in (FILES['png'], BOMBS['png']):
        try: open_image(put(b))
        except ImageError: pass
    assert before == (Image.MAX_IMAGE_PIXELS,ImageFile.LOAD_TRUNCATED_IMAGES)

def test_pillows_own_limit_is_typed_too(put, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
    with pytest.raises(ImageTooLargeError): open_image(put(FILES['webp']))

# ---------------------------------------------------------------- reduced decoding

def photo(w, h, seed=0):
    "A smooth random picture with fine noise, (h,w,3)"
    rng = np.random.default_rng(seed)
    im = Image.fromarray(rng.integers(0, 256, (9,9,3), dtype=np.uint8)).resize((w,h), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(im) + rng.normal(0, 6, (h,w,3)), 0, 255).astype(np.uint8)

@pytest.mark.parametrize('mode', ['L','RGB'])
@pytest.mark.parametrize('method', ['squash','pad'])
@pytest.mark.parametrize('wh', [(1600,1200), (1001,777), (700,1500)])
def test_reduced_decoding_looks_the_same(put, wh, method, mode):
    path = put(encode(photo(*wh), 'JPEG', quality=90))
    full = np.asarray(resize_image(open_image(path, mode), 64, method))
    fast = load_image(path, 64, method, mode)
    assert open_image(path, mode, 64).size < wh
    assert abs(fast.astype(int)-full).mean() < (1 if wh[0]%8==0 else 2.5) # a partial last block stretches it a little

@pytest.mark.parametrize('size', [1, 30, 64, 100, 224, 400, 800, 5000])
def test_reduced_never_below_twice(put, size):
    path = put(encode(photo(1000,800), 'JPEG'))
    assert min(open_image(path, size=size).size) >= min(2*size, 800)

def test_reduced_and_turned(put):
    exif = Image.Exif()
    exif[274] = 6
    path = put(encode(photo(1600,800), 'JPEG', exif=exif))
    im = open_image(path, size=64)
    assert im.size == (200,400)
    assert abs(load_image(path, 64).astype(int) - np.asarray(resize_image(open_image(path), 64))).mean() < 1

def test_reduced_cut(put):
    b = encode(photo(1600,800), 'JPEG')
    with pytest.raises(TruncatedImageError): open_image(put(b[:len(b)*3//4]), size=32)

@pytest.mark.parametrize('name', FILES)
def test_size_changes_no_other_format(put, name):
    if not name.startswith('jpeg'): assert np.array_equal(px(put(FILES[name]), size=4), px(put(FILES[name])))

# ---------------------------------------------------------------- the second decoder, for small JPEGs

def with_interval(b, n):
    "JPEG `b` that says it restarts every `n` blocks, which it does not"
    at = b.index(b'\xff\xda')
    return b[:at] + b'\xff\xdd\0\4' + struct.pack('>H', n) + b[at:]

_exif = Image.Exif()
_exif[274] = 6
_a = np.ascontiguousarray(RGB[:17,:21])
SMALL = dict(grey=encode(_a[...,0].copy(), 'JPEG'), s420=encode(_a, 'JPEG'), s422=encode(_a, 'JPEG', subsampling=1), s444=encode(_a, 'JPEG', subsampling=0), pixel=encode(_a[:1,:1,0].copy(), 'JPEG'),
    restarts=encode(_a, 'JPEG', restart_marker_blocks=1), comment=encode(_a[...,0].copy(), 'JPEG', comment=b'seen'), optimised=encode(_a[...,0].copy(), 'JPEG', optimize=True),
    s411=imagecodecs.jpeg8_encode(_a, subsampling='411'), interval=with_interval(encode(_a, 'JPEG'), 1))
OTHER = dict(progressive=encode(_a, 'JPEG', progressive=True), exif=encode(_a, 'JPEG', exif=_exif), cmyk=encode(_a, 'JPEG', 'CMYK'), profile=encode(_a, 'JPEG', icc_profile=bytes(200)),
    adobe_rgb=imagecodecs.jpeg8_encode(_a, outcolorspace='RGB'), ycck=imagecodecs.jpeg8_encode(np.dstack([_a, _a[...,:1]]), colorspace='CMYK', outcolorspace='YCCK'),
    deep=imagecodecs.jpeg8_encode(_a.astype(np.uint16), bitspersample=12), trailing=SMALL['grey']+b'abc', zeros=SMALL['grey']+bytes(40), twice=SMALL['grey']+SMALL['s420'])

@pytest.fixture
def both(monkeypatch):
    "Asserts that bytes `b` give the same pixels or the same error with and without the second decoder, and whether it was used"
    real,used = images._small_jpeg,[]
    def spy(*args):
        used.append((a := real(*args)) is not None)
        return a
    def outcome(b, kw, decoder):
        monkeypatch.setattr(images, '_open_file', lambda path, read: io.BytesIO(b))
        monkeypatch.setattr(images, '_small_jpeg', decoder)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore') # Pillow warns of damaged EXIF
            try: return (a := px('x', **kw)).shape,a.tobytes()
            except ImageError as e: return type(e),e.reason
    def _both(b, **kw):
        assert outcome(b, kw, spy)==outcome(b, kw, lambda *args: None)
        return used[-1]
    return _both

@pytest.mark.parametrize('mode', ['L','RGB'])
@pytest.mark.parametrize('name', [*SMALL, *OTHER])
def test_second_decoder(both, name, mode):
    "Which files it gets, and that nothing differs"
    b = (SMALL|OTHER)[name]
    assert both(b, mode=mode) is (name in SMALL)
    assert not both(b, mode=mode, size=1) or name=='pixel' # reduced decoding is Pillow's
    both(b[:128]+b'DICM'+b[132:], mode=mode)

@pytest.mark.parametrize('name', [*SMALL, *OTHER])
def test_second_decoder_cut(both, name):
    "A cut at every byte, and an end put behind it"
    b = (SMALL|OTHER)[name]
    for n in range(1, len(b)):
        assert not both(b[:n], mode='RGB') or name in ('trailing','zeros','twice')
        if n%5==0: both(b[:n]+b'\xff\xd9')

@pytest.mark.parametrize('name', [*SMALL, *OTHER])
def test_second_decoder_damage(both, name):
    rnd,n,whole = random.Random(name),0,(SMALL|OTHER)[name]
    for _ in range(150):
        b = bytearray(whole)
        for _ in range(rnd.choice([1,1,2,8])):
            at = rnd.randrange(min(len(b)-2, rnd.choice([len(b), whole.index(b'\xff\xda')+12]))) # half of them in the header
            if (k := rnd.random())<.6: b[at] = rnd.choice([rnd.randrange(256), 0, 255])
            elif k<.8: del b[at:at+rnd.choice([1,2,9])]
            else: b[at:at+2] = bytes([255, rnd.choice([0,1,0xc0,0xc2,0xc4,0xd0,0xd7,0xd8,0xd9,0xda,0xdb,0xdd,0xe0,0xee,0xfe])])
        n += both(bytes(b), mode=rnd.choice(['L','RGB']))
    assert n>15 or name not in SMALL # the test reaches it

def test_second_decoder_has_the_same_limits(both, put, monkeypatch):
    at = SMALL['grey'].index(b'\xff\xc0')+5
    for h,w in ((0,0), (1,0), (65500,8), (65501,8), (8,65535), (60000,60000)): both(SMALL['grey'][:at]+struct.pack('>HH', h, w)+SMALL['grey'][at+4:])
    monkeypatch.undo()
    monkeypatch.setattr(images, 'MAX_PIXELS', 17*21-1)
    with pytest.raises(ImageTooLargeError, match='21 x 17'): open_image(put(SMALL['grey']))

def test_second_decoder_is_not_needed(put, monkeypatch):
    want = load_image(put(SMALL['s420']), 20)
    monkeypatch.setitem(__import__('sys').modules, 'imagecodecs', None)
    assert np.array_equal(load_image(put(SMALL['s420']), 20), want)

def test_second_decoder_leaves_large_files(put, monkeypatch):
    monkeypatch.setattr(images, '_plain_size', lambda *args: pytest.fail('used'))
    path = put(encode(np.random.default_rng(0).integers(0, 256, (300,300), dtype=np.uint8), 'JPEG', quality=95))
    assert path.stat().st_size>2**16 and open_image(path).size==(300,300)

def test_only_small_files_are_read_whole(put, monkeypatch):
    assert isinstance(images._open_file(put(bytes(images._small))), io.BytesIO)
    with images._open_file(put(bytes(images._small+1))) as f: assert not isinstance(f, io.BytesIO)

@pytest.mark.parametrize('grow', [-1, 0, 1, 2**20])
def test_a_file_that_changes_while_it_is_read(put, monkeypatch, grow):
    "What is there when it is read counts, not the size that it had"
    b = FILES['png']+bytes(100)
    path,real = put(b),os.stat
    monkeypatch.setattr(os, 'stat', lambda p, **kw: os.stat_result((*real(p)[:6], real(p).st_size+grow, *real(p)[7:10])) if p==path else real(p, **kw))
    assert np.array_equal(px(path), GREY)

# ---------------------------------------------------------------- squares

@pytest.mark.parametrize('method', ['squash','pad'])
def test_right_size_is_untouched(put, method):
    path = put(encode(photo(64,64), 'PNG'))
    im = open_image(path, 'RGB')
    assert resize_image(im, 64, method) is im
    assert np.array_equal(load_image(path, 64, method, 'RGB'), photo(64,64))

@pytest.mark.parametrize('wh', [(10,30), (300,7), (1,1000), (1000,1), (1,1), (63,64), (65,64)])
@pytest.mark.parametrize('mode', ['L','RGB'])
def test_pad(wh, mode):
    im = Image.new(mode, wh, 'white')
    a = np.asarray(resize_image(im, 64, 'pad'))
    assert a.shape[:2] == (64,64)
    w,h = (max(1, round(o*64/max(wh))) for o in wh)
    grey = a if mode=='L' else a[...,0]
    inside = np.zeros((64,64), bool)
    inside[(64-h)//2:(64-h)//2+h, (64-w)//2:(64-w)//2+w] = True
    assert (grey[inside]==255).all() and (grey[~inside]==0).all()

def test_squash_is_plain_bilinear():
    im = Image.fromarray(RGB)
    assert np.array_equal(resize_image(im, 20), im.resize((20,20), Image.Resampling.BILINEAR))

def test_reduction_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([0,255], np.uint8), (512,256)))
    assert abs(np.asarray(resize_image(stripes, 64)).astype(int)-127).max() <= 6

def test_wrong_arguments(put):
    path = put(FILES['png'])
    with pytest.raises(ValueError, match='mode'): open_image(path, 'CMYK')
    with pytest.raises(ValueError, match='method'): resize_image(Image.new('L', (4,4)), 4, 'crop')
    with pytest.raises(ValueError, match='open_image'): resize_image(Image.new('P', (4,4)), 8)

def test_load_image(put):
    a = load_image(put(FILES['png_rgb']), 32)
    assert (a.shape, a.dtype, a.flags.writeable, a.flags.c_contiguous) == ((32,32), np.uint8, True, True)
    assert load_image(put(FILES['png']), 32, mode='RGB').shape == (32,32,3)

# ---------------------------------------------------------------- processes, threads, handles

@pytest.mark.parametrize('cls', [ImageError, *ImageError.__subclasses__()])
def test_errors_travel(cls):
    e = pickle.loads(pickle.dumps(cls(Path('a/b.png'), 'why')))
    assert (type(e), e.path, e.reason, str(e)) == (cls, os.path.join('a','b.png'), 'why', f"{os.path.join('a','b.png')}: why")

def test_threads(tmp_path):
    "Eight threads over good and bad files of all formats see what one sees"
    paths = []
    for i,(name,b) in enumerate(FILES.items()):
        for j,data in enumerate((b, b[:len(b)//2])):
            paths.append(tmp_path/f'{i}_{j}')
            paths[-1].write_bytes(data)
    def see(path):
        try: return px(path, 'RGB').tobytes()
        except ImageError as e: return type(e),e.reason
    alone = [see(o) for o in paths]
    with ThreadPoolExecutor(8) as ex: together = list(ex.map(see, paths*6))
    assert together == alone*6

@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='no list of open files on this system')
def test_files_are_closed(tmp_path):
    held,n = [],len(os.listdir('/proc/self/fd'))
    for name,b in FILES.items():
        for data in (b, b[:len(b)//2], b[:9], BOMBS['png']):
            path = tmp_path/'scan'
            path.write_bytes(data)
            try: held.append(open_image(path))
            except ImageError as e: held.append(e) # its traceback holds the frames
            path.unlink()
    assert len(os.listdir('/proc/self/fd')) == n
    assert all(o.getpixel((0,0)) is not None for o in held if isinstance(o, Image.Image)) # decoded, though the file is gone
