// What the statistics of a call over channels are of: the elements that a mask lets count, in this
// process or all of them; or nothing of x, where they are given.
#pragma once

#include "ops/channel_call.h"
#include "ops/mask.h"

namespace normcore {

// The mask of a call: what each position counts in statistics of x.
inline void count_by(const ConstTensor& given, ChannelCall& call) {
  const ConstTensor& x = call.x;
  ExpectedShape shape;
  for (int a = 0; a < x.ndim(); ++a) {
    if (a != call.channel_axis) shape.append(x.shape(a));
  }
  shape.rule = "x.shape without the channel axis";
  check_shape("mask", given, shape);
  check_mask_dtype(given, x);
  call.mask = ConstTensor(given.data(), given.dtype(), x.ndim());
  for (int a = 0, from = 0; a < x.ndim(); ++a) {
    const bool repeated = a == call.channel_axis;
    call.mask.set_dim(a, x.shape(a), repeated ? 0 : given.stride(from));
    from += !repeated;
  }
}

// Where statistics of x are those of other processes too.
inline Exchange* exchange_of(const ChannelCall& call, const Context& context) {
  return call.of_the_batch() ? context.exchange : nullptr;
}

// Mask and exchange where statistics are taken from x, and how much a batch pool counts.
inline Population population_of(const ChannelCall& call, const Context& context, Counted* count) {
  Population p{};
  p.own = Weighed::elements(double(call.space()) * double(call.samples()));
  p.exchange = exchange_of(call, context);
  p.count = count;
  p.least_count = call.of_the_batch() && !call.mask ? 2 : 0;
  if (call.mask) {
    const bool counts = !call.computed().empty();
    if (counts) p.mask = call.mask.data();
    if (context.device == Device::kCpu) {
      // It is repeated along the channels.
      const Weighed weights = weigh(call.mask, std::max<Index>(1, call.channels()));
      if (counts) p.own = weights;
    }
  }
  count->here = p.own;
  return p;
}

// What is given, per channel, as the pipeline takes it.
struct GivenMoments {
  const double* mean = nullptr;
  const double* var = nullptr;

  GivenMoments(const ChannelCall& call, Memory& memory) {
    const GivenStatistics& given = call.given;
    if (!given) return;
    mean = call.load_channels(given.mean, memory);
    if (!given.var) {
      var = memory.take_filled<double>(call.channels(), 1);
      return;
    }
    var = call.load_channels(given.var, memory);
    if (!given.deviation) return;
    double* squares = memory.take<double>(call.channels());
    memory.transform(Memory::kSquare, var, call.channels(), squares);
    var = squares;
  }
};

}  // namespace normcore
