// The C interface from Go, as tests/test_package.py compiles it: a result that is known by hand, and
// an error.
package main

// #include <normcore/c_api.h>
// // Go's memory may not hold pointers to other memory of Go when C sees it: so the structs are C's.
// static normcore_status layer_norm(const float* x, float* y, int64_t rows, int64_t columns,
//                                   int64_t out_rows) {
//   const int64_t shape[2] = {rows, columns}, out_shape[2] = {out_rows, columns};
//   const normcore_const_tensor in = {x, NORMCORE_FLOAT32, 2, shape, NULL};
//   const normcore_tensor out = {y, NORMCORE_FLOAT32, 2, out_shape, NULL};
//   return normcore_layer_norm(&in, NULL, NULL, &out, NULL, NULL);
// }
import "C"

import (
	"fmt"
	"math"
	"os"
	"strings"
)

func layerNorm(x, y []float32, rows, outRows int) error {
	columns := C.int64_t(len(x) / rows)
	status := C.layer_norm((*C.float)(&x[0]), (*C.float)(&y[0]), C.int64_t(rows), columns,
		C.int64_t(outRows))
	if status != C.NORMCORE_OK {
		return fmt.Errorf("%s", C.GoString(C.normcore_last_error()))
	}
	return nil
}

func main() {
	x, y := []float32{1, 3, -300, 300}, make([]float32, 4)
	err := layerNorm(x, y, 2, 2)
	for i, want := range []float64{-1, 1, -1, 1} {
		if err != nil || math.Abs(float64(y[i])-want) > 1e-4 {
			fmt.Println(y, err)
			os.Exit(1)
		}
	}
	err = layerNorm(x, y, 2, 1)
	if err == nil || !strings.Contains(err.Error(), "shape (1, 2)") {
		fmt.Println("the error is", err)
		os.Exit(1)
	}
}
