// The C interface from Rust, as tests/test_package.py compiles it: a result that is known by hand,
// and an error.
use std::ffi::{c_char, c_void, CStr};

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    dtype: i32,
    ndim: i32,
    shape: *const i64,
    strides: *const i64,
}

extern "C" {
    fn normcore_last_error() -> *const c_char;
    fn normcore_layer_norm(
        x: *const Tensor,
        weight: *const Tensor,
        bias: *const Tensor,
        out: *const Tensor,
        options: *const c_void,
        context: *const c_void,
    ) -> i32;
}

fn tensor(values: &mut [f32], shape: &[i64]) -> Tensor {
    Tensor {
        data: values.as_mut_ptr().cast(),
        dtype: 0,
        ndim: shape.len() as i32,
        shape: shape.as_ptr(),
        strides: std::ptr::null(),
    }
}

fn layer_norm(x: &Tensor, out: &Tensor) -> Result<(), String> {
    let null = std::ptr::null();
    unsafe {
        match normcore_layer_norm(x, null, null, out, null.cast(), null.cast()) {
            0 => Ok(()),
            _ => Err(CStr::from_ptr(normcore_last_error()).to_string_lossy().into_owned()),
        }
    }
}

fn main() {
    let (mut x, mut y) = ([1.0, 3.0, -300.0, 300.0], [0.0; 4]);
    let x = tensor(&mut x, &[2, 2]);
    layer_norm(&x, &tensor(&mut y, &[2, 2])).unwrap();
    let expected = [-1.0, 1.0, -1.0, 1.0];
    assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{y:?}");
    let error = layer_norm(&x, &tensor(&mut y, &[4])).unwrap_err();
    assert!(error.contains("shape (4,)"), "{error}");
}
