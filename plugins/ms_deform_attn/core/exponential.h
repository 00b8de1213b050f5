// exp() of a vector, for the softmax over samples.
#pragma once

namespace detr
{

// exp(x - highest) for x <= highest, with an absolute error of about one unit in the last place of
// a float near one. It is 2^n for the nearest n, times a polynomial of the remainder, which is in
// (-0.5, 0.5). Never less than 2^-125.
template <class V>
inline typename V::Float exponential(typename V::Float x, typename V::Float highest)
{
    using Float = typename V::Float;
    const Float toBinary(1.44269504f);
    const Float binary = atLeast(Float(-125.0f), (x - highest) * toBinary); // NaN stays NaN
    const Float n = V::nearestOf(binary);
    const Float r = binary - n;
    // Taylor series of 2^r, with an error below 2e-8 in this range.
    Float sum(1.5403530e-4f); // ln(2)^6 / 6!
    sum = V::multiplyAdd(sum, r, Float(1.3333558e-3f));
    sum = V::multiplyAdd(sum, r, Float(9.6181291e-3f));
    sum = V::multiplyAdd(sum, r, Float(5.5504109e-2f));
    sum = V::multiplyAdd(sum, r, Float(2.4022651e-1f));
    sum = V::multiplyAdd(sum, r, Float(6.9314718e-1f));
    sum = V::multiplyAdd(sum, r, Float(1.0f));
    return V::timesPowerOfTwo(sum, n);
}

} // namespace detr
