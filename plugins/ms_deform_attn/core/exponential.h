// exp() of a vector, for the softmax over samples.
#pragma once

namespace detr
{

// exp(x) for x <= 0, to about one unit in the last place of a float; zero or nearly so below -87.
// 2^n of the nearest n, times a Taylor polynomial of what is left, within half of ln 2.
template <class V>
inline typename V::Float exponential(typename V::Float x)
{
    using Float = typename V::Float;
    const Float lowest(-87.0f);
    x = select(x < lowest, lowest, x); // a NaN stays one
    const Float n = floorOf(V::multiplyAdd(x, Float(1.44269504f), Float(0.5f)));
    Float r = V::multiplyAdd(n, Float(-0.693359375f), x); // ln 2 in two parts
    r = V::multiplyAdd(n, Float(2.12194440e-4f), r);
    Float sum(1.0f / 720);
    sum = V::multiplyAdd(sum, r, Float(1.0f / 120));
    sum = V::multiplyAdd(sum, r, Float(1.0f / 24));
    sum = V::multiplyAdd(sum, r, Float(1.0f / 6));
    sum = V::multiplyAdd(sum, r, Float(0.5f));
    sum = V::multiplyAdd(sum, r, Float(1.0f));
    sum = V::multiplyAdd(sum, r, Float(1.0f));
    return V::timesPowerOfTwo(sum, n);
}

} // namespace detr
