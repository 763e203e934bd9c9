// The kernels of one element type, of which kernels.inl makes a table. They are in the files that
// it includes.
#pragma once

#include "affine.inl"
#include "arrays.inl"
#include "gradient.inl"
#include "kernels.h"
#include "masked.inl"
#include "mixing.inl"
#include "moments.inl"
#include "pipelined.inl"
#include "spectral.inl"
#include "spread.inl"
#include "wide_cells.inl"
#include "windows.inl"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

template <class T>
constexpr KernelSet<Compute<T>> kSet = {
    {moments<T, kRows>, moments<T, kCols>},
    {squares<T, kRows>, squares<T, kCols>},
    {masked_moments<T, kRows>, masked_moments<T, kCols>},
    {affine<T, kRows>, affine<T, kCols>},
    {weighted_affine<T, kRows>, weighted_affine<T, kCols>},
    {{affine_moments<T, false, true>, affine_moments<T, false, false>},
     {affine_moments<T, true, true>, affine_moments<T, true, false>}},
    {sums<T, kRows>, sums<T, kCols>},
    {weighted_sums<T, kRows>, weighted_sums<T, kCols>},
    {sums_and_parameters<T, kRows>, sums_and_parameters<T, kCols>},
    {grad<T, kRows>, grad<T, kCols>},
    {masked_grad<T, kRows>, masked_grad<T, kCols>},
    {weighted_grad<T, kRows>, weighted_grad<T, kCols>},
    {parameter_sums<T, kRows>, parameter_sums<T, kCols>},
    {tally<T, kRows>, tally<T, kCols>},
    {peak<T, kRows>, peak<T, kCols>},
    {outliers<T, kRows>, outliers<T, kCols>},
    {slope_grad<T, kRows>, slope_grad<T, kCols>},
    add<T>,
    repeat<Compute<T>>,
    load_array<T>,
    store_array<T>,
    kMatrix<T>,
    {{load_pixels<T, kRows>, load_pixels<T, kCols>},
     {store_pixels<T, kRows>, store_pixels<T, kCols>},
     {mix_tile<T, kRows>, mix_tile<T, kCols>}},
    kWindowKernels<T>,
};

}  // namespace

}  // namespace normcore::cpu::NORMCORE_ISA
