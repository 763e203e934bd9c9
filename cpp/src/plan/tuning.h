// Sizes that only speed depends on, with what they were measured against. Nothing here may change a
// result except the chunk and piece lengths and which planes are columns, which fix the order of
// summation.
#pragma once

#include <algorithm>

#include "normcore/dtype.h"

namespace normcore::tuning {

// A chunk is summed in the compute type: short enough for its rounding, long enough for its merge.
inline constexpr Index kRowChunk = 4096;  // elements; half of it for float64
inline constexpr Index kColChunk = 128;   // rows of a column tile
// Partial sums are kept per piece. A piece is a task, and columns of few rows shall be several.
inline constexpr Index kRowChunksPerPiece = 16;
inline constexpr Index kColChunksPerPiece = 2;

// What a block may read and still find in a core's own cache when it applies.
inline constexpr Index kFusedBytes = Index(1) << 19;
// Blocks are made this large where they are free to be larger than closure asks. Over 64 KB: layer
// norm backward, rows of 768 to 4096, 0.89 to 0.94 of the time, forward 0.95 to 0.99; with 192 KB
// rows of 256 take 1.04.
inline constexpr Index kBlockBytes = Index(1) << 17;
// Rows that are written, and those that are reduced meanwhile, where four are not more than this.
inline constexpr Index kTurnBytes = Index(1) << 14;
// One task of a sweep over more than the cache holds.
inline constexpr Index kUnitBytes = Index(1) << 18;
// Channel blocks reach over all samples, a short run of memory in each: they are made wider.
inline constexpr Index kColumnBlockBytes = Index(3) << 17;
// They come in multiples of this: two or four threads then have as much to do.
inline constexpr Index kEvenBlocks = 4;
// And have so much of each sample at least. Of shorter runs far apart they cost more than they
// save: in the shared cache batch norm of planes of 14x14 to 28x28 takes 0.6 to 0.93 of its time in
// two sweeps that follow memory (where runs have 32 KB 0.9 to 1.1), and past the caches 0.7 to 0.8,
// with two threads 0.64 to 1.05 (where they have 12 KB 0.9, and 1.2).
inline constexpr Index kBlockRunBytes = Index(1) << 13;
inline constexpr Index kBlockRunBytesInCache = Index(3) << 13;
// A channels-last sample that is worked on whole, in a core's own cache.
inline constexpr Index kSampleBytes = Index(3) << 18;
// A tile of its columns, where it is larger.
inline constexpr Index kTileBytes = Index(1) << 17;
// Narrowest tile of tall columns, and what it may hold of x: the shared cache keeps it from one
// sweep to the next. Over two sweeps, 1024 to 4096 rows: batch norm 0.71 to 0.94 of the time,
// backward 0.55 to 0.95, weight norm backward 0.77; runs of half the length would take up to 1.4
// times that, and twice the tile, in 8192 rows, would gain 0.86 to 0.94.
inline constexpr Index kTallTileRun = 512;
inline constexpr Index kTallTileBytes = Index(1) << 21;
// A sweep over planes goes through whole samples: over strips of their channels batch norm
// evaluation of 7x7 to 14x14 takes 0.66 to 0.9 of its time, the backward of that 0.6 to 0.9. It has
// up to so many pieces, of so many elements of a channel at least where these have partial sums
// (512: backward 32x512x7x7 would take 1.15 of the time with two threads, and small calls gain 3 in
// 100). A task has up to so many bytes; where tasks would be few, they are strips.
inline constexpr Index kSweptPieces = 32;
inline constexpr Index kLeastPiece = 128;
inline constexpr Index kSweptBytes = Index(1) << 21;
inline constexpr Index kFewestSweptTasks = 8;
// Enough closed blocks to keep the threads busy without splitting them.
inline constexpr Index kManyBlocks = 16;
// A sample, or a channel, that is worked on whole although only the shared cache holds it.
inline constexpr Index kSharedBytes = Index(1) << 23;
// Narrowest column tile: shorter segments waste the memory bus.
inline constexpr Index kMinTileBytes = 256;
// Planes of up to so many bytes are the columns of a cell, where there are samples enough to pay
// for what is done once for every column. Time of planes as rows that follow memory over that:
// training forward 5x5, 64 samples 1.75 to 1.95, 16 samples 1.5; 7x7, 16 samples 1.1; 8x8 1.2 to
// 1.3; 10x10 1.2 to 1.3, bfloat16 1.4 to 1.5; 14x14 0.62 to 0.9, bfloat16 0.8 to 1.16. Backward 4x4
// 1.2 to 1.36; 7x7 0.8 to 1.0, bfloat16 1.27 to 1.38; 8x8 0.87, bfloat16 0.84 to 1.1; 14x14 0.6 to
// 0.9, past the caches with two threads 0.91 to 1.04. Given statistics 5x5 in bfloat16 1.57 to 1.7;
// 7x7 1.0 to 1.09, bfloat16 1.43 to 1.54 backward; 8x8 0.9. Past the caches 20x20 takes 0.96, and
// with two threads 1.2. The first bound is for statistics that forward computes.
inline constexpr Index kMostPlaneBytesOfMoments = 400;
inline constexpr Index kMostPlaneBytes = 124;
constexpr double fewest_wide_samples(Index columns) {
  return std::max(4.0, std::min(double(columns) / 3.2, 10 + double(columns) / 9));
}
// Bytes of one column tile of kColChunk rows.
inline constexpr Index kColTileBytes = Index(1) << 18;
// And of one that is swept once, where there are threads enough for its rows: no cache holds it,
// and long runs of memory count, each thread in pages of its own.
inline constexpr Index kSweptTileBytes = Index(1) << 21;
// Columns of a tile that is read twice, from a core's own cache the second time.
inline constexpr Index kStripColumns = 512;
// Bytes of one tile of short rows.
inline constexpr Index kRowTileBytes = Index(1) << 14;
// Rows of a tile of longer ones with elementwise parameters, over those of one row: layer norm
// 1024x8192 0.72 to 0.84 of the time, backward 0.87 to 0.91 (512x8192 bfloat16 0.76 to 0.82),
// 256x16384 0.95 to 0.99, backward 0.87; with blocks of four rows of 262144 up to 1.4.
inline constexpr Index kRowsOfChunks = 4;
// In backward they are a block where a core's own cache holds no row of two operands and what runs
// along them: rows of 262144 0.90 to 0.92 of the time, bfloat16 0.76 to 0.79; of 65536 up to 1.07.
// (Forward with 2 MB of that cache 0.63 to 0.99, but of 65536 up to 1.7.)
inline constexpr Index kFarRowBytes = Index(1) << 19;
// Where the cells of rows lie side by side in memory: bytes of a run that is gathered at a time,
// and of the tile that is made of such runs.
inline constexpr Index kGatherRun = 256;
inline constexpr Index kGatherBytes = Index(1) << 20;
// Elements of a gathered tile.
inline constexpr Index kPackElements = 16384;

// Where all operands together are larger than a last-level cache's usual share, outputs are stored
// past the caches. Measured with 32 MB: of three operands, or with elementwise parameters, that
// gains up to a third from 21 MB on, and loses up to a quarter at 18 MB. Of two operands, at 25 MB,
// what stays in the cache takes 0.5 to 1.0 of the time; at 33 MB up to 1.25.
inline constexpr Index kStreamBytes = Index(5) << 22;
inline constexpr Index kStreamBytesOfTwo = Index(7) << 22;
// From so many bytes of inputs on the next block is asked for while one is worked on. Layer norm
// backward that does not ask, one and two threads: 1 to 6 MB 0.90 to 0.99 of the time, 8 MB 1.07
// and 0.97, 12 MB 1.3 and 1.0, 18 MB 1.2 and 1.06, 25 MB 1.16 with two.
inline constexpr Index kAskBytes = Index(1) << 23;
// As far as prefetchers look, and from where on a plane is a run to them.
inline constexpr Index kPage = Index(1) << 12;
// A run of memory that prefetchers follow by themselves.
inline constexpr Index kLongRunBytes = Index(1) << 17;
// Less data than this is not worth a second thread.
inline constexpr Index kSerialBytes = Index(1) << 19;
// Rows of a column tile that are asked for while those before them are worked on, but no less than
// a page: of rows of 128 bytes 16 are too near, by 0.95.
inline constexpr Index kRowsAhead = 16;
// And how far ahead rows do that are summed one after the other. Layer norm backward: with 4 KB 1.0
// to 1.2 of the time, with 8 KB 0.96 to 1.07, with 64 KB up to 1.2.
inline constexpr Index kBytesAhead = 6144;
// Data that the cores' own caches hold between calls.
inline constexpr Index kStickyBytes = Index(1) << 22;
// Row blocks over which the gradients of elementwise parameters are summed separately.
inline constexpr Index kParameterTasks = 64;
inline constexpr Index kParameterTaskCells = 16;
// Of so many parameters half as many rows are two tasks: 16x65536 takes 0.6 of the time with two
// threads, 1.1 with one. The sums of all shall not outgrow what a thread keeps from call to call,
// but for a few tasks.
inline constexpr Index kLongParameters = Index(1) << 14;
inline constexpr Index kParameterSumBytes = Index(1) << 24;
inline constexpr Index kFewParameterTasks = 8;
// Cells after which such a sum in the compute type moves on to double.
inline constexpr Index kParameterFlushCells = 256;
// Pixels per channel of a run over which the gradients of mixing weights are summed: what all runs
// keep is an eighth of a float32 tensor.
inline constexpr Index kMixingRunPixels = 16;
// Where there would be fewer runs, threads share so many tiles at a time, and then the rows of dW:
// two threads take 0.57 to 0.68 of the time, but of two runs they would take 1.1.
inline constexpr Index kMixingFewestRuns = 2;
inline constexpr Index kMixingWave = 16;
// Tiles of mixed channels that are read and written together: longer runs of memory, against more
// of the core's own cache.
inline constexpr Index kMixingTilesForward = 8;
inline constexpr Index kMixingTilesBackward = 4;
inline constexpr Index kMixingTasks = 32;  // but only where so many are left
// x and u of two tiles whose pixels are rows: the more of these, the longer W stays where it is.
inline constexpr Index kMixingTileBytes = Index(1) << 18;

// A block of a matrix from which both products are taken while a core's own cache holds it.
inline constexpr Index kMatrixBlockBytes = Index(1) << 18;
// One task of a sweep over a matrix, and how many have a partial sum each.
inline constexpr Index kMatrixTaskBytes = Index(1) << 18;
inline constexpr Index kMatrixTasks = 64;
// Up to so many rows a matrix is taken in blocks of columns: these are then wide enough.
inline constexpr Index kFewRows = 256;

}  // namespace normcore::tuning
