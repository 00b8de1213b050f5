"""Multi-scale deformable attention in Triton, forward and backward.

A program computes one head for BLOCK_Q queries of one image. Rows are its queries and columns are
all samples of a query, level after level, padded to BLOCK_S; channels are padded to BLOCK_D. The
backward kernel computes softmax and locations again, so that nothing is kept from the forward one.
All arithmetic is in float32.

Source: Deformable DETR, arXiv:2010.04159, eq. (3). Pixel centres are at (i + 0.5) / size.
"""

import triton
import triton.language as tl


@triton.jit
def _items(num_queries, NUM_HEADS: tl.constexpr, BLOCK_Q: tl.constexpr):
    """This program's image and head; places of its queries, rows of its results, which exist.

    A query that does not exist is replaced by the last one, whose results are written once.
    """
    program = tl.program_id(0)
    head = program % NUM_HEADS
    blocks_per_image = tl.cdiv(num_queries, BLOCK_Q)
    block = program // NUM_HEADS
    query = block % blocks_per_image * BLOCK_Q + tl.arange(0, BLOCK_Q)
    image = (block // blocks_per_image).to(tl.int64)
    place = image * num_queries + tl.minimum(query, num_queries - 1)
    return image, head, place, place * NUM_HEADS + head, query < num_queries


@triton.jit
def _levels_of(sample, shapes, NUM_LEVELS: tl.constexpr, NUM_POINTS: tl.constexpr):
    """The level, height, width and first token for each sample; beyond the last level, zeros."""
    level = sample // NUM_POINTS
    height = tl.zeros_like(level)
    width = tl.zeros_like(level)
    start = tl.zeros_like(level)
    tokens = 0
    for i in tl.static_range(NUM_LEVELS):
        rows = tl.cast(shapes[2 * i], tl.int32)
        columns = tl.cast(shapes[2 * i + 1], tl.int32)
        height = tl.where(level == i, rows, height)
        width = tl.where(level == i, columns, width)
        start = tl.where(level == i, tokens, start)
        tokens += rows * columns
    return level, height, width, start


@triton.jit
def _softmax(logits_ptr, element, exists):
    """The attention weights, (BLOCK_Q, BLOCK_S); zero beyond the last sample."""
    logits = tl.load(logits_ptr + element, mask=exists, other=float("-inf")).to(tl.float32)
    powers = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return powers / tl.sum(powers, axis=1)[:, None]


@triton.jit
def _pair(pointer, element, exists):
    """Two numbers beside each other, in float32; zero beyond the last sample."""
    x = tl.load(pointer + element, mask=exists, other=0.0).to(tl.float32)
    y = tl.load(pointer + element + 1, mask=exists, other=0.0).to(tl.float32)
    return x, y


@triton.jit
def _pixel(centre, extent, offset, size, SCALE: tl.constexpr):
    """The pixel coordinate along one axis of a sample."""
    if SCALE > 0:
        return (centre + offset * extent * SCALE) * size - 0.5
    return centre * size + offset - 0.5


@triton.jit
def _axis(coordinate, size):
    """The lower of the two pixels around a coordinate, how far away it is, and if it may count.

    A coordinate that has no pixel beside it does not count, nor does NaN.
    """
    counts = (coordinate >= -1.0) & (coordinate < size)
    used = tl.where(counts, coordinate, 0.0)
    low = tl.floor(used)
    return low.to(tl.int32), used - low, counts


@triton.jit
def _locate(centre, extent, offset, levels, SCALE: tl.constexpr):
    """Column and row of the samples' upper left pixels, the fractions beyond, and if they count."""
    _, height, width, _ = levels
    columns = width.to(tl.float32)[None, :]
    rows = height.to(tl.float32)[None, :]
    x = _pixel(centre[0], extent[0], offset[0], columns, SCALE)
    y = _pixel(centre[1], extent[1], offset[1], rows, SCALE)
    column, across, counts_x = _axis(x, columns)
    row, down, counts_y = _axis(y, rows)
    return column, row, across, down, counts_x & counts_y


@triton.jit
def _corner(CORNER: tl.constexpr, spot, levels):
    """One of the samples' pixels: its token, if it is taken, and its weight along each axis."""
    column, row, across, down, counts = spot
    _, height, width, start = levels
    column += CORNER % 2
    row += CORNER // 2
    is_inside = (column >= 0) & (column < width[None, :]) & (row >= 0) & (row < height[None, :])
    along_x = across if CORNER % 2 == 1 else 1.0 - across
    along_y = down if CORNER // 2 == 1 else 1.0 - down
    return start[None, :] + row * width[None, :] + column, counts & is_inside, along_x, along_y


@triton.jit
def _samples(
    reference_ptr,
    offsets_ptr,
    logits_ptr,
    shapes,
    place,
    row,
    NUM_LEVELS: tl.constexpr,
    NUM_POINTS: tl.constexpr,
    REFERENCE_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """All of the queries' samples: what is loaded and what is computed from it.

    Their numbers in a dense tensor and which exist; attention weights; levels; where they are;
    offsets, and sizes of reference boxes, which for points mean nothing.
    """
    sample = tl.arange(0, BLOCK_S)
    exists = (sample < NUM_LEVELS * NUM_POINTS)[None, :]
    element = row[:, None] * (NUM_LEVELS * NUM_POINTS) + sample[None, :]
    levels = _levels_of(sample, shapes, NUM_LEVELS, NUM_POINTS)
    weight = _softmax(logits_ptr, element, exists)
    offset = _pair(offsets_ptr, 2 * element, exists)
    reference = (place[:, None] * NUM_LEVELS + levels[0][None, :]) * REFERENCE_DIM
    centre = _pair(reference_ptr, reference, exists)
    extent = centre
    if REFERENCE_DIM == 4:
        extent = _pair(reference_ptr, reference + 2, exists)
    spot = _locate(centre, extent, offset, levels, SCALE)
    return element, exists, weight, levels, spot, offset, extent


@triton.jit(do_not_specialize=["num_tokens", "num_queries"])
def forward_kernel(
    value_ptr, reference_ptr, offsets_ptr, logits_ptr,
    output_ptr,
    shapes, num_tokens, num_queries,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    NUM_LEVELS: tl.constexpr, NUM_POINTS: tl.constexpr, REFERENCE_DIM: tl.constexpr,
    SCALE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The operator; all tensors are dense. `shapes`: height, width, height, ... of the levels.

    These are floats: kernels are compiled for integers in a tuple that are 1 or divisible by 16,
    so almost every size of image would have its own.
    """
    image, head, place, row, exists = _items(num_queries, NUM_HEADS, BLOCK_Q)
    _, _, weight, levels, spot, _, _ = _samples(
        reference_ptr, offsets_ptr, logits_ptr, shapes, place, row,
        NUM_LEVELS, NUM_POINTS, REFERENCE_DIM, SCALE, BLOCK_S,
    )  # fmt: skip
    channel = tl.arange(0, BLOCK_D)
    has_channel = channel < HEAD_DIM
    first = (image * num_tokens * NUM_HEADS + head) * HEAD_DIM
    total = tl.zeros((BLOCK_Q, BLOCK_S, BLOCK_D), tl.float32)
    for corner in tl.static_range(4):
        token, is_taken, along_x, along_y = _corner(corner, spot, levels)
        pixel = token[:, :, None] * (NUM_HEADS * HEAD_DIM) + channel[None, None, :]
        mask = is_taken[:, :, None] & has_channel[None, None, :]
        values = tl.load(value_ptr + first + pixel, mask=mask, other=0.0).to(tl.float32)
        total += (weight * along_x * along_y)[:, :, None] * values
    result = tl.sum(total, axis=1)
    target = output_ptr + row[:, None] * HEAD_DIM + channel[None, :]
    tl.store(target, result, mask=exists[:, None] & has_channel[None, :])


@triton.jit
def _add(sums_ptr, whole_ptr, first, pixel, terms, scale, mask, IS_DETERMINISTIC: tl.constexpr):
    """Add to the gradient of value, in float32, in whatever order programs come.

    Or in whole numbers, whose order does not matter; what is not finite becomes NaN.
    """
    if IS_DETERMINISTIC:
        scaled = terms * scale
        is_finite = tl.abs(scaled) < float("inf")
        whole = tl.where(is_finite, scaled, 0.0).to(tl.int64)
        tl.atomic_add(whole_ptr + first + pixel, whole, mask=mask, sem="relaxed")
        tl.store(sums_ptr + first + pixel, float("nan"), mask=mask & (is_finite == 0))
    else:
        tl.atomic_add(sums_ptr + first + pixel, terms, mask=mask, sem="relaxed")


@triton.jit
def _write_locations(
    reference_gradient_ptr,
    offsets_gradient_ptr,
    change,
    row,
    exists,
    samples,
    NUM_LEVELS: tl.constexpr,
    REFERENCE_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    WITH_REFERENCE: tl.constexpr,
):
    """The gradients of offsets and reference points, from the `change` per pixel, (x, y)."""
    element, is_sample, levels, offset, extent = samples
    level, height, width, _ = levels
    across = change[0] * width.to(tl.float32)[None, :]  # per unit of the map
    down = change[1] * height.to(tl.float32)[None, :]
    change_x, change_y = change
    if REFERENCE_DIM == 4:
        change_x = across * extent[0] * SCALE
        change_y = down * extent[1] * SCALE
    is_written = exists[:, None] & is_sample
    tl.store(offsets_gradient_ptr + 2 * element, change_x, mask=is_written)
    tl.store(offsets_gradient_ptr + 2 * element + 1, change_y, mask=is_written)
    if WITH_REFERENCE:
        for i in tl.static_range(NUM_LEVELS):
            here = (level == i)[None, :]
            target = reference_gradient_ptr + (row * NUM_LEVELS + i) * REFERENCE_DIM
            tl.store(target, tl.sum(tl.where(here, across, 0.0), axis=1), mask=exists)
            tl.store(target + 1, tl.sum(tl.where(here, down, 0.0), axis=1), mask=exists)
            if REFERENCE_DIM == 4:
                wider = tl.where(here, across * offset[0] * SCALE, 0.0)
                higher = tl.where(here, down * offset[1] * SCALE, 0.0)
                tl.store(target + 2, tl.sum(wider, axis=1), mask=exists)
                tl.store(target + 3, tl.sum(higher, axis=1), mask=exists)


@triton.jit(do_not_specialize=["num_tokens", "num_queries"])
def backward_kernel(
    value_ptr, reference_ptr, offsets_ptr, logits_ptr,
    output_gradient_ptr, value_gradient_ptr, whole_ptr, scale_ptr,
    reference_gradient_ptr, offsets_gradient_ptr, logits_gradient_ptr,
    shapes, num_tokens, num_queries,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    NUM_LEVELS: tl.constexpr, NUM_POINTS: tl.constexpr, REFERENCE_DIM: tl.constexpr,
    SCALE: tl.constexpr, IS_DETERMINISTIC: tl.constexpr, WITH_REFERENCE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients; that of value is added to what is there, in float32.

    That of reference points is written for each head, (B, Q, M, L, 2 or 4).
    """
    image, head, place, row, exists = _items(num_queries, NUM_HEADS, BLOCK_Q)
    element, is_sample, weight, levels, spot, offset, extent = _samples(
        reference_ptr, offsets_ptr, logits_ptr, shapes, place, row,
        NUM_LEVELS, NUM_POINTS, REFERENCE_DIM, SCALE, BLOCK_S,
    )  # fmt: skip
    channel = tl.arange(0, BLOCK_D)
    has_channel = channel < HEAD_DIM
    first = (image * num_tokens * NUM_HEADS + head) * HEAD_DIM
    source = output_gradient_ptr + row[:, None] * HEAD_DIM + channel[None, :]
    output = tl.load(source, mask=has_channel[None, :], other=0.0).to(tl.float32)[:, None, :]
    scale = tl.load(scale_ptr) if IS_DETERMINISTIC else 1.0

    # What the product of the output's gradient with a sample is, and its change per pixel.
    product = tl.zeros((BLOCK_Q, BLOCK_S), tl.float32)
    change_x = tl.zeros((BLOCK_Q, BLOCK_S), tl.float32)
    change_y = tl.zeros((BLOCK_Q, BLOCK_S), tl.float32)
    for corner in tl.static_range(4):
        token, is_taken, along_x, along_y = _corner(corner, spot, levels)
        pixel = token[:, :, None] * (NUM_HEADS * HEAD_DIM) + channel[None, None, :]
        mask = is_taken[:, :, None] & has_channel[None, None, :]
        values = tl.load(value_ptr + first + pixel, mask=mask, other=0.0).to(tl.float32)
        at_corner = tl.sum(output * values, axis=2)
        product += at_corner * along_x * along_y
        change_x += at_corner * along_y * (1.0 if corner % 2 == 1 else -1.0)
        change_y += at_corner * along_x * (1.0 if corner // 2 == 1 else -1.0)
        terms = (weight * along_x * along_y)[:, :, None] * output
        _add(
            value_gradient_ptr, whole_ptr, first, pixel, terms, scale,
            mask & exists[:, None, None], IS_DETERMINISTIC,
        )  # fmt: skip
    mean = tl.sum(weight * product, axis=1)[:, None]
    is_written = exists[:, None] & is_sample
    tl.store(logits_gradient_ptr + element, weight * (product - mean), mask=is_written)
    change = (change_x * weight, change_y * weight)
    _write_locations(
        reference_gradient_ptr, offsets_gradient_ptr, change, row, exists,
        (element, is_sample, levels, offset, extent),
        NUM_LEVELS, REFERENCE_DIM, SCALE, WITH_REFERENCE,
    )  # fmt: skip
