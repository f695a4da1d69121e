# make                                        the libraries, in target/release/package
# make install prefix=/usr DESTDIR=/tmp/root  these, the header, and files for pkg-config and CMake; can be moved as a whole
# make wheel                                  the Python package, in target/release/wheel
# make uninstall                              takes them away again, with the same variables
# make FEATURES=cuda                          with features of Cargo.toml
# make TARGET=aarch64-unknown-linux-gnu       for another machine; cross/README.md says what it takes

prefix ?= /usr/local
exec_prefix ?= $(prefix)
libdir ?= $(exec_prefix)/lib
includedir ?= $(prefix)/include
DESTDIR ?=
FEATURES ?=
CARGO ?= cargo
INSTALL ?= install
PYTHON ?= python3

# Rust's name of the machine to build for; none: this one.
TARGET ?=
ifneq ($(TARGET),)
  ifeq ($(origin CC),default)
    CC := $(or $(CC_$(subst -,_,$(TARGET))),$(firstword $(subst -, ,$(TARGET)))-linux-gnu-gcc)
  endif
endif

target := $(abspath $(or $(CARGO_TARGET_DIR),target))
release := $(target)$(TARGET:%=/%)/release
built := $(release)/package
version := $(shell sed -n 's/^version = "\(.*\)"/\1/p;/^version/q' Cargo.toml)
# While 0.x every minor may break: then it is part of the library's name.
major := $(firstword $(subst ., ,$(version)))
abi := $(if $(filter 0,$(major)),0.$(word 2,$(subst ., ,$(version))),$(major))

to := $(DESTDIR)$(libdir)
cmakedir := $(to)/cmake/edgellm

all: library
	CC="$(CC)" package/link.sh "$(release)/libedgellm.a" "$(built)"

# Cargo knows whether there is something to do.
library:
	$(CARGO) build --release --lib --target-dir "$(target)" $(TARGET:%=--target %) $(FEATURES:%=--features %)

# What the files for pkg-config and CMake say is relative to where they are, so that the tree can be moved: $(1) is the
# folder that a file is installed in.
fill = sed -e 's|@version@|$(version)|g' -e 's|@major@|$(major)|g' -e 's|@abi@|$(abi)|g' \
  -e "s|@up@|$$(realpath -ms --relative-to='$(1)' '$(prefix)')|g" \
  -e "s|@libdir@|$$(realpath -ms --relative-to='$(prefix)' '$(libdir)')|g" \
  -e "s|@includedir@|$$(realpath -ms --relative-to='$(prefix)' '$(includedir)')|g"

install: all
	$(INSTALL) -d "$(DESTDIR)$(includedir)" "$(to)/pkgconfig" "$(cmakedir)"
	$(INSTALL) -m 644 include/edgellm.h include/edgellm.hpp "$(DESTDIR)$(includedir)/"
	$(INSTALL) -m 644 "$(built)/libedgellm.a" "$(to)/"
	$(INSTALL) -m 755 "$(built)/libedgellm.so.$(version)" "$(to)/"
	ln -sfn libedgellm.so.$(version) "$(to)/libedgellm.so.$(abi)"
	ln -sfn libedgellm.so.$(abi) "$(to)/libedgellm.so"
	$(call fill,$(libdir)/pkgconfig) package/edgellm.pc.in >"$(to)/pkgconfig/edgellm.pc"
	$(call fill,$(libdir)/cmake/edgellm) package/edgellmConfig.cmake.in >"$(cmakedir)/edgellmConfig.cmake"
	$(call fill,$(libdir)/cmake/edgellm) package/edgellmConfigVersion.cmake.in >"$(cmakedir)/edgellmConfigVersion.cmake"

uninstall:
	rm -f "$(DESTDIR)$(includedir)/edgellm.h" "$(DESTDIR)$(includedir)/edgellm.hpp" \
	  "$(to)/libedgellm.a" "$(to)/libedgellm.so" "$(to)/libedgellm.so.$(abi)" \
	  "$(to)/libedgellm.so.$(version)" "$(to)/pkgconfig/edgellm.pc"
	rm -rf "$(cmakedir)"

# The licences have to be beside pyproject.toml: it is built from a copy.
wheel: all
	rm -rf "$(release)/wheel"
	mkdir -p "$(release)/wheel/source"
	cp -R python include Cargo.toml "$(release)/wheel/source/"
	cp LICENSE-* "$(release)/wheel/source/python/"
	LIBEDGELLM_LIBRARY="$(built)/libedgellm.so" $(PYTHON) -m pip wheel --quiet --no-deps \
	  --wheel-dir "$(release)/wheel" "$(release)/wheel/source/python"
	rm -rf "$(release)/wheel/source"

.PHONY: all library install uninstall wheel
