"""An engineer uses the wheel: a model, an image, a training of somebody else, a graph for another program.

    pip install 'interflow-sr[export]'
    python 2_library.py PHOTO.png OUT
"""
import subprocess
import sys
from pathlib import Path

import interflow

photo, out = Path(sys.argv[1]), Path(sys.argv[2])

# A model from anywhere: a folder, a run, a file, owner/name on the hub; two small ones come along.
flow, net = interflow.load('shipped:flow'), interflow.load('shipped:rcan')

# One image: tensors (3, H, W) in [0, 1].
hr = interflow.read_image(photo)
lr = interflow.generate(flow, hr, factor=3, seed=0)         # on the grid of hr
large = interflow.upscale(net, lr[:, 1::3, 1::3], factor=3)
print('one image:', tuple(hr.shape), '->', tuple(lr.shape), '->', tuple(large.shape))

# A folder: files.
written = interflow.upscale(net, photo.parent, out / 'large', factor=2)
print('a folder:', [path.name for path in written])

# Degradation inside somebody else's training: crops in, pairs out, other ones in each epoch.
degrade = interflow.Degrade(flow, 'random:2.1:3.9', seed=0)
pair = degrade(hr[:, :64, :64])
print('a pair for a training:', sorted(pair), tuple(pair['lr'].shape))

# A graph for programs that know nothing of PyTorch.
graph = out / 'rcan.onnx'
subprocess.run(['interflow', 'export', 'shipped:rcan', graph], check=True)
try:
    import onnxruntime
except ImportError:
    print('the graph:', graph.name)
else:
    session = onnxruntime.InferenceSession(graph)
    name = session.get_inputs()[0].name
    answer, = session.run(None, {name: hr[None, :, :64, :64].numpy()})
    print('the graph:', graph.name, answer.shape)

# One kind of error, one line: the file or value, the cause, the fix.
try:
    interflow.generate(flow, hr, factor=9)
except interflow.InterflowError as fault:
    print('an error:', fault)
