from pathlib import Path

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load

ROOT = Path(__file__).resolve().parents[2]


class Normcore(ConanFile):
    name = "normcore"
    description = "Normalization methods of deep learning, forward and backward"
    license = "BSD-3-Clause"
    settings = "os", "arch", "compiler", "build_type"
    options = {"shared": [True, False], "fPIC": [True, False]}
    default_options = {"shared": False, "fPIC": True}
    implements = ["auto_shared_fpic"]

    def set_version(self):
        header = load(self, str(ROOT / "cpp/include/normcore/version.h"))
        self.version = header.split('"')[1]

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "cmake/*", "cpp/*"):
            copy(self, pattern, str(ROOT), self.export_sources_folder)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["NORMCORE_BUILD_TESTS"] = False
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, str(Path(self.package_folder, "licenses")))

    def package_info(self):
        self.cpp_info.set_property("cmake_find_mode", "none")  # the library brings its own files
        self.cpp_info.builddirs = ["lib/cmake/normcore"]
        self.cpp_info.libs = ["normcore"]
        if self.settings.os == "Linux":
            self.cpp_info.system_libs = ["pthread", "dl"]
