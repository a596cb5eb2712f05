"""`jcos export`."""

import dataclasses

from jcos.cli import page_options
from jcos.files import write
from jcos.report import export
from jcos.report.reading import check_results, read

KINDS = ("svg", "png", "csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(page_options.Export):
    """`jcos export`, at work."""

    def run(self) -> None:
        films = [file for file in (self.gif, self.mp4) if file is not None]
        folders = {kind: folder for kind in KINDS if (folder := getattr(self, kind)) is not None}
        if not (films or folders or self.plane):
            raise ValueError("nothing to export; give --gif, --mp4, --plane, --svg, --png or --csv")
        for file, suffix in ((self.gif, ".gif"), (self.mp4, ".mp4"), (self.plane, ".png")):
            if file is not None and file.suffix != suffix:
                raise ValueError(
                    f"{file} is to be a {suffix[1:].upper()}; name it {file.stem}{suffix}"
                )
        check_results(self.results)
        results = read(self.results)
        if folders and not results.charts:
            raise ValueError(
                f"{self.results} has no charts: {'; '.join(results.missing) or 'no results.nc'}"
            )
        written = []
        if films or self.plane:
            plane = export.plane_of(results, self.run_number)
            for file in films:
                export.write_film(plane, file, self.frame)
                written.append(file)
            if self.plane is not None:
                write(self.plane, export.plane_png(plane))
                written.append(self.plane)
        for kind, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            written += export.write_charts(results.charts, folder, kind)
        print("\n".join(map(str, written)))
