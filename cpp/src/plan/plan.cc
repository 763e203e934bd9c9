#include "plan/plan.h"

#include <algorithm>

#include "plan/tuning.h"

namespace normcore {
namespace {

Index magnitude(Index stride) { return stride < 0 ? -stride : stride; }

Index operands_of(const PlanRequest& r) {
  return std::count_if(r.operands.begin(), r.operands.end(),
                       [](const ConstTensor* t) { return t != nullptr; });
}

// Whether axis `inner` continues axis `outer` in every operand.
bool mergeable(const PlanRequest& r, int outer, int inner) {
  for (const ConstTensor* t : r.operands) {
    if (t && t->stride(outer) != t->stride(inner) * t->shape(inner)) return false;
  }
  return true;
}

struct MergedDims {
  int count = 0;
  Index size[kMaxDims];
  int axis[kMaxDims];  // whose strides the merged dimension has
};

// The first `apart` axes stay by themselves.
MergedDims merge(const PlanRequest& r, const int* axes, int n, int apart = 0) {
  const ConstTensor& x = *r.operands[kX];
  MergedDims m;
  for (int i = 0; i < n; ++i) {
    const int a = axes[i];
    if (m.count > apart && mergeable(r, m.axis[m.count - 1], a)) {
      m.size[m.count - 1] *= x.shape(a);
      m.axis[m.count - 1] = a;
    } else {
      m.size[m.count] = x.shape(a);
      m.axis[m.count++] = a;
    }
  }
  return m;
}

// The axis that counts samples, where there is one.
bool counts_samples(const PlanRequest& r, int axis) {
  return axis == 0 && r.roles[0] == Role::outer;
}

// The role that decides on the layout, and with it on the order of summation within a cell: that of
// the innermost axis of a sample. A sample does not know where its batch lies, nor how large it is,
// so the axis of the samples has no say.
Role innermost_role(const PlanRequest& r, const int* axes, const Role* role_of, int n) {
  int inner = n - 1;
  if (inner >= 0 && counts_samples(r, axes[inner]) && role_of[inner] == Role::outer) --inner;
  if (inner < 0) return Role::space;
  if (r.affinity == Affinity::element && role_of[inner] == Role::space) {
    // One of the kept positions that lie within a cell's elements, cut out, is summed as among the
    // others: its axis still has the shorter stride.
    const ConstTensor& x = *r.operands[kX];
    const Index step = magnitude(x.stride(axes[inner]));
    for (int a = 0; a < x.ndim(); ++a) {
      const Index s = magnitude(x.stride(a));
      const bool cut = x.shape(a) == 1 && r.roles[a] == Role::outer && !counts_samples(r, a);
      if (cut && s > 0 && s < step) return Role::outer;
    }
  }
  return role_of[inner];
}

// Cells that are gathered together where they lie closer to each other than their elements do:
// those of some cache lines.
Index cells_of_lines(const PlanRequest& r, const Plan& p, Index element) {
  if (p.layout != Layout::rows || p.space_dims == 0) return 1;
  const Index length = std::min(p.count, p.chunk) * element;
  const Index run =
      std::clamp<Index>(tuning::kGatherBytes / length * element, 64, tuning::kGatherRun);
  Index cells = 1;
  for (int i = 0; i < kMaxOperands; ++i) {
    const Access& a = p.access[i];
    if (!r.operands[i] || a.direct || a.cell == 0) continue;
    const Index step = magnitude(a.cell) * element;
    if (magnitude(a.cell) < magnitude(a.space[p.space_dims - 1])) {
      cells = std::max(cells, run / std::min(run, step));
    }
  }
  return std::min(cells, p.cells);
}

// Of statistics of the whole batch a sample is one row: where its planes are short, their channels
// are cells of as many columns as a plane has elements. `planes`: the innermost axes, of space.
struct WideCells {
  int planes = 0;
  Index columns = 1;
};
WideCells wide_cells(const PlanRequest& r, const int* axes, int n, Index most_bytes) {
  const ConstTensor& x = *r.operands[kX];
  WideCells w;
  while (w.planes < n && r.roles[axes[n - 1 - w.planes]] == Role::space) {
    w.columns *= x.shape(axes[n - 1 - w.planes++]);
  }
  const int channel = n - 1 - w.planes;
  const bool one_channel = channel < 0 || r.roles[axes[channel]] != Role::channel;
  for (int i = 0; one_channel && i < x.ndim(); ++i) {
    if (r.roles[i] == Role::channel && x.shape(i) > 1) return {};
  }
  const int before = one_channel ? channel + 1 : channel;  // axes outside a channel
  Index samples = 1;
  for (int i = 0; i < before; ++i) samples *= x.shape(axes[i]);
  const Index plane_bytes = w.columns * static_cast<Index>(size_of(x.dtype()));
  if (w.columns == 1 || plane_bytes > most_bytes) return {};
  if (double(samples) < tuning::fewest_wide_samples(w.columns)) return {};
  if (merge(r, axes, before).count != 1) return {};
  for (const ConstTensor* t : r.operands) {
    if (!t) continue;
    Index run = 1;
    for (int i = n - 1; i >= before; run *= x.shape(axes[i--])) {
      if (t->stride(axes[i]) != run) return {};
    }
  }
  return w;
}

// Of a plane that is the columns of a cell.
Index most_plane_bytes(const PlanRequest& r) {
  return r.pools.empty() || operands_of(r) > 2 ? tuning::kMostPlaneBytes
                                               : tuning::kMostPlaneBytesOfMoments;
}

Index round_down(Index n, Index unit) { return std::max(unit, n / unit * unit); }
Index clamp(Index n, Index low, Index high) { return std::max(low, std::min(n, high)); }

// Cells of a block where it may have up to `most`: few blocks are as many as even out the threads,
// and alike.
Index evened(Index cells, Index most, Index unit, Index cell_bytes) {
  const Index fewest = ceil_div(cells, most);
  if (cells * cell_bytes < tuning::kSerialBytes / 2 || fewest > 4 * tuning::kEvenBlocks)
    return most;
  const Index blocks = ceil_div(fewest, tuning::kEvenBlocks) * tuning::kEvenBlocks;
  return std::min(most, ceil_div(ceil_div(cells, blocks), unit) * unit);
}

void plan_work(const PlanRequest& r, Plan* p) {
  const Index element = static_cast<Index>(size_of(r.operands[kX]->dtype()));
  const bool rows = p->layout == Layout::rows;
  Index packed = 0;
  for (int i = 0; i < kMaxOperands; ++i) {
    packed += r.operands[i] != nullptr && !p->access[i].direct;
  }
  const Index column_bytes = p->cell_columns * element;  // of a row of a cell
  const Index cell_bytes = p->count * column_bytes;
  p->bytes = p->outer * p->cells * cell_bytes * operands_of(r);
  const bool two = operands_of(r) == 2 && r.affinity != Affinity::element;
  p->stream = p->bytes >= (two ? tuning::kStreamBytesOfTwo : tuning::kStreamBytes);
  const bool computed = !r.pools.empty();
  p->second_sweep = computed;

  // Chunks are constants, and pieces go by the cell alone, so that its bits do: of planes of a
  // batch by its samples.
  p->chunk = rows ? (element == 8 ? tuning::kRowChunk / 2 : tuning::kRowChunk) : tuning::kColChunk;
  p->piece_space = p->chunk * (rows ? tuning::kRowChunksPerPiece : tuning::kColChunksPerPiece);
  p->piece_outer = p->merged_outer ? std::max<Index>(1, p->chunk / p->count) : 1;
  if (rows && p->merged_outer) {
    const Index least = computed ? ceil_div(tuning::kLeastPiece, p->count) : 1;
    const Index even = std::max(least, ceil_div(p->outer, tuning::kSweptPieces));
    p->piece_outer = std::min(p->piece_outer, even);
  }

  const Index together = packed > 0 ? cells_of_lines(r, *p, element) : 1;

  // What a closed block must hold, and how many there are.
  Index closure = 1, closed_rows = 1;
  if (r.pools.has(Extent::group)) closure = p->cells / p->groups;
  if (r.pools.has(Extent::row)) closure = p->cells;
  // Given statistics belong to channels, like those of a pool that is a column.
  if (p->extent == Extent::column) closed_rows = p->outer;
  const Index closed_bytes = std::max<Index>(1, closed_rows * closure * cell_bytes);
  // Rows with parameters of their own are worked on as if each were alone.
  const Index sharing = p->parameters_by_row ? p->cells : p->outer * p->cells;
  const bool many_blocks = sharing >= tuning::kManyBlocks * closed_rows * closure;
  const Index row_bytes = std::max<Index>(1, p->cells * cell_bytes);  // one row of the table

  p->fused = computed;
  p->reason = "closed blocks in cache";
  p->block_outer = closed_rows;
  p->block_cells = p->cells;
  if (!computed) {
    p->reason = "statistics given: one sweep";
  } else if (rows) {
    p->fused =
        closed_bytes <= tuning::kFusedBytes ||
        (many_blocks && (p->extent != Extent::column || closed_bytes <= tuning::kSharedBytes));
    const Index wanted =
        p->extent == Extent::column ? tuning::kColumnBlockBytes : tuning::kBlockBytes;
    p->block_cells =
        evened(p->cells, std::min(p->cells, closure * at_most(p->cells, wanted, closed_bytes)),
               closure, closed_rows * cell_bytes);
    if (r.affinity == Affinity::element && operands_of(r) > 2 && cell_bytes >= tuning::kFarRowBytes)
      p->block_cells = std::min(p->cells, tuning::kRowsOfChunks);
    // A block of short runs that are far apart costs more than it saves.
    const bool apart = p->merged_outer && closed_rows > 1 && p->block_cells < p->cells;
    const Index run = p->stream ? tuning::kBlockRunBytes : tuning::kBlockRunBytesInCache;
    p->fused = p->fused && !(apart && p->block_cells * cell_bytes < run);
  } else if (row_bytes > tuning::kSampleBytes || closed_rows > 1) {
    // Column tiles, as wide as a block allows and no narrower than the memory bus likes. A sample
    // that the shared cache holds is better taken whole, if not all samples are closed together.
    const Index tile_bytes = closed_rows * cell_bytes;
    const bool tiled = closed_rows > 1 || row_bytes > tuning::kSharedBytes;
    Index narrow = round_down(tuning::kTallTileRun / column_bytes, closure);
    bool fits =
        narrow * tile_bytes <= tuning::kTallTileBytes && p->cells >= tuning::kManyBlocks * narrow;
    if (!fits) {
      narrow = round_down(tuning::kMinTileBytes / column_bytes, closure);
      fits = narrow * tile_bytes <= tuning::kFusedBytes / 2;
    }
    if (tiled && fits) {
      // Whole lines, where groups allow.
      const Index width = round_down(tuning::kTileBytes / tile_bytes, narrow);
      p->block_cells = evened(p->cells, std::min(p->cells, width), narrow, tile_bytes);
      p->reason = "column tiles in cache";
    } else {
      p->fused = closed_rows == 1 && p->outer >= tuning::kManyBlocks / 2 &&
                 row_bytes <= tuning::kSharedBytes;
      p->reason = "samples in the shared cache";
    }
  }
  if (closure == 1) p->block_cells = std::max(p->block_cells, together);
  if (p->fused && closed_rows == 1 && p->block_cells == p->cells) {
    p->block_outer = at_most(p->outer, tuning::kBlockBytes, row_bytes);
  }
  if (p->fused && r.affinity == Affinity::element) {
    // Few enough cells for their share in a parameter's gradient to be summed in the compute type.
    p->block_cells = std::min(p->block_cells, tuning::kParameterFlushCells);
    p->block_outer = at_most(p->block_outer, tuning::kParameterFlushCells, p->block_cells);
  }
  p->fused = p->fused && !r.one_block;
  if (!p->fused) {
    if (computed) p->reason = "no closed blocks in cache: two sweeps";
    p->block_outer = p->outer;
    p->block_cells = p->cells;
  }

  if (rows) {
    // A sweep follows memory, through whole samples: that is where prefetchers are ahead of it.
    const bool in_order = !p->fused && p->merged_outer;
    const Index most_bytes = in_order ? tuning::kSweptBytes : tuning::kUnitBytes;
    const Index unit_bytes = p->piece_outer * std::min(p->count, p->piece_space) * element;
    p->unit_cells = at_most(p->block_cells, most_bytes, unit_bytes);
    if (in_order && p->bytes >= tuning::kSerialBytes) {
      const Index pieces = ceil_div(p->outer, p->piece_outer) * p->space_pieces();
      const Index strips = ceil_div(tuning::kFewestSweptTasks, pieces);
      p->unit_cells = std::min(p->unit_cells, ceil_div(p->cells, strips));
    }
    // Rows that stay in the first-level cache from one kernel to the next, four at a time.
    p->tile_cells = p->fused ? p->block_cells : p->unit_cells;
    if (p->count > p->chunk) {
      // Rows that go chunk by chunk share what runs along them.
      const Index most = r.affinity == Affinity::element ? tuning::kRowsOfChunks : 1;
      p->tile_cells = std::min(p->tile_cells, most);
    } else if (const Index most = in_order ? tuning::kUnitBytes : tuning::kRowTileBytes;
               p->tile_cells * cell_bytes > most) {
      p->tile_cells = std::min(p->tile_cells, round_down(most / cell_bytes, 4));
    }
    if (packed > 0) {
      const Index length = std::max<Index>(1, std::min(p->count, p->chunk));
      p->tile_cells = clamp(tuning::kPackElements / length, 1, p->tile_cells);
      p->tile_cells = std::max(p->tile_cells, std::min(together, p->block_cells));
      p->unit_cells = std::max(p->unit_cells, p->tile_cells);
    }
  } else {
    const Index pieces = ceil_div(p->outer, p->piece_outer) * p->space_pieces();
    const bool swept = !p->fused && packed == 0 && pieces >= tuning::kManyBlocks;
    const Index wanted = swept ? tuning::kSweptTileBytes : tuning::kColTileBytes;
    p->tile_cells = at_most(p->block_cells, wanted, p->chunk * column_bytes);
    if (packed > 0) p->tile_cells = std::min(p->tile_cells, tuning::kPackElements / p->chunk);
    p->unit_cells = p->tile_cells;
  }
  if (p->fused) p->unit_cells = p->block_cells;
  // Measured, of closed blocks and past the caches: planes gain a seventh. In the shared cache they
  // take up to 1.4 of the time; columns, long rows and what is swept once lose up to a half to
  // prefetchers that look ahead.
  p->backwards = computed && rows && r.affinity == Affinity::channel && (p->fused || p->stream);
}

// Without elements the table has no rows: one block, in which the pools that are columns, and may
// be those of other processes, have their entries all the same.
void plan_nothing(Plan* p) {
  p->outer = p->count = 0;
  p->merged_outer = p->parameters_by_row = false;
  p->chunk = p->piece_outer = p->piece_space = 1;
  p->block_outer = p->unit_cells = p->tile_cells = 1;
  p->block_cells = std::max<Index>(1, p->cells);
  p->cell_columns = 1;
  p->fused = p->second_sweep = p->stream = p->backwards = false;
  p->bytes = 0;
  p->reason = "no elements";
}

}  // namespace

int sort_axes(const ConstTensor& x, int* axes) {
  int n = 0;
  for (int a = 0; a < x.ndim(); ++a) {
    if (x.shape(a) == 1) continue;
    int at = n++;
    const Index s = magnitude(x.stride(a));
    while (at > 0 && s != 0 && x.stride(axes[at - 1]) != 0 &&
           s > magnitude(x.stride(axes[at - 1]))) {
      axes[at] = axes[at - 1];
      --at;
    }
    while (at > 0 && s == 0 && x.stride(axes[at - 1]) != 0) {
      axes[at] = axes[at - 1];
      --at;
    }
    axes[at] = a;
  }
  return n;
}

Extent extent_of(Pool pool, Affinity affinity) {
  // With elementwise parameters every row of the table is one cell.
  if (affinity == Affinity::element) return Extent::cell;
  switch (pool) {
    case Pool::instance:
      return Extent::cell;
    case Pool::group:
      return Extent::group;
    case Pool::sample:
      return Extent::row;
    case Pool::batch:
    case Pool::given:
      return Extent::column;
  }
  return Extent::cell;
}

void make_plan(const PlanRequest& r, Plan* p) {
  const ConstTensor& x = *r.operands[kX];
  int axes[kMaxDims];
  int n = sort_axes(x, axes);

  p->affinity = r.affinity;
  p->groups = r.groups;
  p->extent = Extent::column;
  p->merged_outer = r.pools.empty() || r.pools == Extents{Extent::column};
  if (!r.pools.empty()) {
    for (const Extent e : {Extent::cell, Extent::group, Extent::row, Extent::column}) {
      if (r.pools.has(e)) p->extent = e;
    }
  }

  // Where statistics are of the whole batch, or given, batch and space may be one.
  WideCells wide;
  if (r.wide_cells && p->merged_outer) wide = wide_cells(r, axes, n, most_plane_bytes(r));
  p->cell_columns = wide.columns;
  n -= wide.planes;
  Role role_of[kMaxDims];
  for (int i = 0; i < n; ++i) role_of[i] = r.roles[axes[i]];
  if (p->merged_outer && n > 0 && (wide.planes > 0 || role_of[n - 1] != Role::space)) {
    for (int i = 0; i < n; ++i) {
      if (role_of[i] == Role::outer) role_of[i] = Role::space;
    }
  }
  const Role innermost = innermost_role(r, axes, role_of, n);
  const Role cell_role = r.affinity == Affinity::channel ? Role::channel : Role::outer;
  p->layout = innermost == cell_role || wide.planes > 0 ? Layout::columns : Layout::rows;

  // Tables and parameters are indexed by the unmerged axes, in this order.
  int cell_axis = -1;
  p->outer_axis_count = p->space_axis_count = 0;
  for (int i = 0; i < n; ++i) {
    if (role_of[i] == Role::space) {
      p->space_axes[p->space_axis_count++] = axes[i];
    } else if (role_of[i] == Role::outer) {
      p->outer_axes[p->outer_axis_count++] = axes[i];
    } else {
      cell_axis = axes[i];
    }
  }
  // Parameters that differ along a kept axis: the rows of the table run along it.
  int* const end = p->outer_axes + p->outer_axis_count;
  int* const apart = std::find(p->outer_axes, end, r.parameter_axis);
  p->parameters_by_row = apart != end;
  if (p->parameters_by_row) std::rotate(p->outer_axes, apart, apart + 1);
  MergedDims outer = merge(r, p->outer_axes, p->outer_axis_count, p->parameters_by_row);
  const MergedDims space = merge(r, p->space_axes, p->space_axis_count);

  p->cells = cell_axis >= 0 ? x.shape(cell_axis) : 1;
  if (r.affinity == Affinity::element && outer.count > int(p->parameters_by_row)) {
    // The innermost kept dimension runs over the cells of a row of the table.
    --outer.count;
    cell_axis = outer.axis[outer.count];
    p->cells = outer.size[outer.count];
  }
  p->outer_dims = outer.count;
  p->space_dims = space.count;
  p->outer = p->count = 1;
  for (int i = 0; i < outer.count; ++i) p->outer *= p->outer_sizes[i] = outer.size[i];
  for (int i = 0; i < space.count; ++i) p->count *= p->space_sizes[i] = space.size[i];

  const bool rows = p->layout == Layout::rows;
  for (int i = 0; i < kMaxOperands; ++i) {
    const ConstTensor* t = r.operands[i];
    if (!t) continue;
    Access& a = p->access[i];
    for (int d = 0; d < outer.count; ++d) a.outer[d] = t->stride(outer.axis[d]);
    for (int d = 0; d < space.count; ++d) a.space[d] = t->stride(space.axis[d]);
    a.cell = cell_axis >= 0 ? t->stride(cell_axis) : 0;
    // Dimensions that another operand keeps apart may be one of this.
    bool one_space = true;
    for (int d = 1; d < space.count; ++d) {
      one_space = one_space && a.space[d - 1] == a.space[d] * space.size[d];
    }
    a.direct = rows ? one_space && (space.count == 0 || a.space[space.count - 1] == 1)
                    : one_space && (p->cells == 1 || a.cell == p->cell_columns);
  }
  if (p->outer == 0 || p->cells == 0 || p->count == 0) {
    plan_nothing(p);
  } else {
    plan_work(r, p);
  }
}

}  // namespace normcore
