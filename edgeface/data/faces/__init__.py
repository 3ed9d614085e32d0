"""A renderer of synthetic faces, and the 3-D template behind their labels.

    template.py   where eyes, brows, nose, lips and jaw lie on the head, and the published point orders over them
    head.py       the parametric head: one surface, its deformation modes
    draw.py       what is drawn by chance: the person, and the shot of that person
    camera.py     pose and projection
    canvas.py     fills, lines and blends on pictures
    paint.py      the albedo of one face, painted on the unrolled surface
    backdrop.py   everything farther than the face
    worn.py       glasses and occluders
    scene.py      light, rasteriser, sensor: the whole picture

Nothing here is photographed or learnt: every number is geometry or a literal of this package.
"""
